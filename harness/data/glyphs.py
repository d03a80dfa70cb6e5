"""The shapes that synthetic scenes are made of: outlines in a unit box, each with one named part.

Family A (animate) makes the targets of testA and family B those of testB, as RefCOCO's testA is
about people and its testB about everything else.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image, ImageDraw

__all__ = ["CATEGORIES", "FAMILY_A", "FAMILY_B", "Glyph", "Raster", "fill_ratio", "rasterise"]

FAMILY_A = ("person", "cat", "bird", "fish", "bug")
FAMILY_B = ("cup", "plate", "box", "star", "ring", "tree", "bottle")
CATEGORIES = FAMILY_A + FAMILY_B

Polygon = list[tuple[float, float]]

_OVERSAMPLING = 4


@dataclass(frozen=True)
class Glyph:
    """A category's shape in the unit box, x to the right, y down.

    Attributes:
        solids: polygons whose union is the outline.
        holes: polygons cut out of it.
        part_name: what the part is called.
        part: polygons of the part, clipped to the outline when drawn.
        centre: where an extra dot goes.
        band: top and bottom of an extra band.
    """

    solids: tuple[Polygon, ...]
    part_name: str
    part: tuple[Polygon, ...]
    holes: tuple[Polygon, ...] = ()
    centre: tuple[float, float] = (0.5, 0.6)
    band: tuple[float, float] = (0.5, 0.66)


@dataclass(frozen=True)
class Raster:
    """A drawn glyph: coverage in 0..1, each ``[h, w]`` float32, cropped to the outline.

    Attributes:
        alpha: coverage of the outline.
        layers: coverage of the part and of each detail inside the outline, by name.
    """

    alpha: np.ndarray
    layers: dict[str, np.ndarray]


def _ellipse(cx: float, cy: float, rx: float, ry: float | None = None, steps: int = 28) -> Polygon:
    ry = rx if ry is None else ry
    turns = [2 * math.pi * i / steps for i in range(steps)]
    return [(cx + rx * math.cos(t), cy + ry * math.sin(t)) for t in turns]


def _box(x1: float, y1: float, x2: float, y2: float) -> Polygon:
    return [(x1, y1), (x2, y1), (x2, y2), (x1, y2)]


def _star(cx: float, cy: float, outer: float, inner: float, points: int = 5) -> Polygon:
    corners = []
    for i in range(2 * points):
        radius, turn = (inner if i % 2 else outer), math.pi * i / points - math.pi / 2
        corners.append((cx + radius * math.cos(turn), cy + radius * math.sin(turn)))
    return corners


def _bug() -> Glyph:
    legs = [
        [(0.5, y), (end, y + dy - 0.035), (end, y + dy + 0.035), (0.5, y + 0.07)]
        for y, dy in ((0.45, -0.1), (0.58, 0.02), (0.7, 0.18))
        for end in (0.0, 1.0)
    ]
    return Glyph((_ellipse(0.5, 0.6, 0.32, 0.38), _ellipse(0.5, 0.18, 0.17), *legs), "head",
                 (_ellipse(0.5, 0.17, 0.18),), band=(0.52, 0.68))  # fmt: skip


_GEM = [(0.5, 0.0), (0.72, 0.18), (0.5, 0.36), (0.28, 0.18)]
_GLYPHS = {
    "person": Glyph(
        (_ellipse(0.5, 0.15, 0.15), [(0.3, 0.31), (0.7, 0.31), (0.8, 0.68), (0.2, 0.68)],
         _box(0.3, 0.66, 0.45, 1.0), _box(0.55, 0.66, 0.7, 1.0)),
        "head", (_ellipse(0.5, 0.15, 0.16),), centre=(0.5, 0.5), band=(0.46, 0.58)),
    "cat": Glyph(
        (_ellipse(0.5, 0.6, 0.44, 0.38), [(0.08, 0.02), (0.42, 0.28), (0.1, 0.55)],
         [(0.92, 0.02), (0.58, 0.28), (0.9, 0.55)]),
        "eyes", (_ellipse(0.33, 0.55, 0.09), _ellipse(0.67, 0.55, 0.09)),
        centre=(0.5, 0.8), band=(0.7, 0.84)),
    "bird": Glyph(
        (_ellipse(0.46, 0.6, 0.32, 0.24), _ellipse(0.72, 0.32, 0.17),
         [(0.85, 0.25), (1.0, 0.36), (0.85, 0.41)], [(0.25, 0.5), (0.0, 0.38), (0.04, 0.7)],
         _box(0.4, 0.8, 0.46, 1.0), _box(0.54, 0.8, 0.6, 1.0)),
        "wing", ([(0.3, 0.5), (0.62, 0.55), (0.3, 0.76)],), centre=(0.66, 0.62), band=(0.56, 0.68)),
    "fish": Glyph(
        (_ellipse(0.58, 0.5, 0.42, 0.27), [(0.3, 0.5), (0.0, 0.2), (0.0, 0.8)],
         [(0.5, 0.3), (0.62, 0.1), (0.72, 0.3)]),
        "eye", (_ellipse(0.8, 0.43, 0.085),), centre=(0.5, 0.5), band=(0.47, 0.6)),
    "bug": _bug(),
    "cup": Glyph(
        ([(0.05, 0.1), (0.7, 0.1), (0.62, 0.95), (0.13, 0.95)], _ellipse(0.7, 0.48, 0.27)),
        "handle", ([(0.68, 0.1), (1.0, 0.1), (1.0, 0.9), (0.62, 0.9)],),
        holes=([(0.69, 0.36), (0.8, 0.38), (0.84, 0.48), (0.8, 0.58), (0.67, 0.6)],),
        centre=(0.37, 0.52), band=(0.44, 0.62)),
    "plate": Glyph((_ellipse(0.5, 0.5, 0.5, 0.3),), "rim", (_ellipse(0.5, 0.5, 0.28, 0.15),),
          centre=(0.5, 0.5), band=(0.45, 0.57)),
    "box": Glyph((_box(0.08, 0.2, 0.92, 0.95), _box(0.02, 0.08, 0.98, 0.3)), "lid",
          (_box(0.0, 0.05, 1.0, 0.3),), centre=(0.5, 0.62), band=(0.55, 0.7)),
    "star": Glyph((_star(0.5, 0.53, 0.53, 0.23),), "core", (_star(0.5, 0.53, 0.26, 0.12),),
          centre=(0.5, 0.53), band=(0.46, 0.6)),
    "ring": Glyph((_ellipse(0.5, 0.55, 0.44), _GEM), "gem", (_GEM,),
          holes=(_ellipse(0.5, 0.55, 0.22),), centre=(0.5, 0.88), band=(0.5, 0.64)),
    "tree": Glyph(([(0.5, 0.0), (0.85, 0.45), (0.15, 0.45)], [(0.5, 0.22), (0.98, 0.78), (0.02, 0.78)],
          _box(0.4, 0.76, 0.6, 1.0)), "trunk", (_box(0.38, 0.79, 0.62, 1.0),),
          centre=(0.5, 0.58), band=(0.56, 0.7)),
    "bottle": Glyph((_box(0.28, 0.38, 0.72, 1.0), [(0.42, 0.15), (0.58, 0.15), (0.72, 0.4), (0.28, 0.4)],
          _box(0.4, 0.0, 0.6, 0.18)), "cap", (_box(0.38, 0.0, 0.62, 0.16),),
          centre=(0.5, 0.68), band=(0.6, 0.78)),
}  # fmt: skip


@cache
def fill_ratio(category: str) -> float:
    """Share of the unit box that the upright glyph covers: sizes are meant as areas, not as boxes."""
    raster = rasterise(category, side=64.0)
    return float(raster.alpha.sum()) / 64.0**2


def rasterise(
    category: str,
    details: tuple[str, ...] = (),
    *,
    side: float,
    angle: float = 0.0,
    mirror: bool = False,
    wobble: tuple[float, float] = (0, 0),
) -> Raster:
    """Draw a category anti-aliased.

    Args:
        category: one of ``CATEGORIES``.
        details: which of ``dot`` and ``band`` to draw beside the part.
        side: side of the unit box, pixels.
        angle: turn in degrees.
        mirror: left and right swapped.
        wobble: depth (share of the side) and phase of a wavy outline.

    Returns:
        Coverage of the outline, of the part, and of the details asked for.
    """
    shape = _GLYPHS[category]

    (depth, phase), turn = wobble, math.radians(angle)
    to_pixels = side * np.array([[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]])
    if mirror:
        to_pixels[0] *= -1

    def place(polygon: Polygon) -> np.ndarray:
        points = np.asarray(polygon) - 0.5
        if depth:
            swell = 1 + depth * np.sin(5 * np.arctan2(points[:, 1], points[:, 0]) + phase)
            points = points * swell[:, None]
        return points @ to_pixels

    solids = [place(p) for p in shape.solids]
    low = np.min([p.min(axis=0) for p in solids], axis=0) - 1
    size = np.ceil(np.max([p.max(axis=0) for p in solids], axis=0) - low + 1).astype(int)

    def draw(polygons: list[np.ndarray], holes: list[np.ndarray]) -> np.ndarray:
        canvas = Image.new("L", tuple((size * _OVERSAMPLING).tolist()), 0)
        pen = ImageDraw.Draw(canvas)
        for group, value in ((polygons, 255), (holes, 0)):
            for points in group:
                pen.polygon(((points - low) * _OVERSAMPLING).ravel().tolist(), fill=value)
        return np.asarray(canvas.reduce(_OVERSAMPLING), dtype=np.float32) / 255

    alpha = draw(solids, [place(p) for p in shape.holes])
    extras: dict[str, tuple[Polygon, ...]] = {
        shape.part_name: shape.part,
        "dot": (_ellipse(*shape.centre, 0.13),),
        "band": (_box(-0.2, shape.band[0], 1.2, shape.band[1]),),
    }
    wanted = (shape.part_name, *details)
    layers = {name: np.minimum(draw([place(p) for p in extras[name]], []), alpha) for name in wanted}
    rows, columns = np.nonzero(alpha.max(axis=1) > 0)[0], np.nonzero(alpha.max(axis=0) > 0)[0]
    crop = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
    return Raster(alpha[crop], {name: layer[crop] for name, layer in layers.items()})
