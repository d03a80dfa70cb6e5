"""The scene model: what stands where in a synthetic image, drawn at random but by name."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

import numpy as np

from harness.data.glyphs import CATEGORIES, FAMILY_A, FAMILY_B, Raster, fill_ratio, rasterise

__all__ = [
    "COLORS",
    "DETAILS",
    "PATTERNS",
    "SIZES",
    "Placed",
    "Scene",
    "SceneObject",
    "compose",
    "named_generator",
]

COLORS = ("red", "yellow", "green", "blue", "purple", "white", "black")
PATTERNS = ("plain", "striped", "spotted", "checked")
DETAILS = ("none", "dot", "band")
# Area as a share of the image; the gaps keep "small" and "large" from being a matter of taste.
SIZES = {"small": (0.016, 0.023), "medium": (0.033, 0.046), "large": (0.066, 0.100)}
_CROWDED_LARGE = (0.066, 0.076)
_PATTERN_ODDS = (0.4, 0.2, 0.2, 0.2)
_DETAIL_ODDS = (0.7, 0.15, 0.15)
_SOLID = 0.5


@dataclass(frozen=True)
class SceneObject:
    """One object of a scene, all lengths in pixels.

    Attributes:
        ann_id: its annotation id.
        category: one of ``CATEGORIES``.
        color: one of ``COLORS``.
        pattern: one of ``PATTERNS``.
        size: ``small``, ``medium`` or ``large``, by the area drawn.
        detail: ``dot``, ``band`` or ``none``, beside the category's own part.
        box: ``x, y, w, h`` of the visible pixels.
        center: mean ``x, y`` of the visible pixels.
        z: drawing order, 0 at the back.
        area: visible pixels.
        full_area: pixels if nothing stood before it.
        visible_fraction: ``area / full_area``.
    """

    ann_id: int
    category: str
    color: str
    pattern: str
    size: str
    detail: str
    box: tuple[int, int, int, int]
    center: tuple[float, float]
    z: int
    area: int
    full_area: int
    visible_fraction: float


@dataclass(frozen=True)
class Scene:
    """An image's objects, back to front."""

    image_id: int
    width: int
    height: int
    domain: str
    objects: tuple[SceneObject, ...]

    def to_json(self) -> dict[str, Any]:
        """As a line of ``scenes.jsonl``."""
        return {**vars(self), "objects": [dict(vars(o)) for o in self.objects]}

    @classmethod
    def from_json(cls, line: dict[str, Any]) -> Scene:
        """From a line of ``scenes.jsonl``."""
        objects = [{**o, "box": tuple(o["box"]), "center": tuple(o["center"])} for o in line["objects"]]
        return cls(**{**line, "objects": tuple(SceneObject(**o) for o in objects)})


@dataclass(frozen=True)
class Placed:
    """A drawn glyph on the canvas.

    Attributes:
        raster: its coverage.
        corner: ``x, y`` of the raster's top left pixel.
        looks: category, color, pattern, size, detail.
        full: ``[H, W]`` bool, its pixels if nothing stood before it.
    """

    raster: Raster
    corner: tuple[int, int]
    looks: dict[str, str]
    full: np.ndarray

    @property
    def window(self) -> tuple[slice, slice]:
        """Where the raster lies on the canvas."""
        (x, y), (h, w) = self.corner, self.raster.alpha.shape
        return slice(y, y + h), slice(x, x + w)


def named_generator(*names: object) -> np.random.Generator:
    """A generator seeded by the sha256 of names: no two jobs share one, and order of use does not matter."""
    key = hashlib.sha256("/".join(map(str, names)).encode()).digest()
    return np.random.default_rng(int.from_bytes(key[:8]))


def compose(
    image_id: int, *, count: int, size: int, domain: str, family: str | None, rng: np.random.Generator
) -> tuple[Scene, list[Placed], np.ndarray]:
    """Draw the objects of a scene and where they stand.

    Args:
        image_id: of the image; annotation ids follow from it.
        count: objects.
        size: side of the image, pixels.
        domain: ``shapes`` or ``blobs`` (wavy outlines).
        family: ``A`` or ``B`` where most objects, and the repeated categories, are to be of it.
        rng: source of randomness.

    Returns:
        The scene, its drawn objects back to front, and their visible masks ``[count, size, size]`` bool.
    """
    looks = _draw_looks(count, family, rng)
    placed = None
    while placed is None:
        placed = _place(looks, count, size, domain, rng)
    visible = np.stack([p.full for p in placed])
    for i in range(count - 1):
        visible[i] &= ~visible[i + 1 :].any(axis=0)
    objects = []
    for z, (item, mask) in enumerate(zip(placed, visible, strict=True)):
        rows, columns = np.nonzero(mask)
        box = (columns.min(), rows.min(), columns.max() - columns.min() + 1, rows.max() - rows.min() + 1)
        full_area = int(item.full.sum())
        objects.append(
            SceneObject(
                ann_id=image_id * 100 + z,
                **item.looks,
                box=tuple(int(v) for v in box),  # type: ignore[arg-type]
                center=(round(float(columns.mean()) + 0.5, 2), round(float(rows.mean()) + 0.5, 2)),
                z=z,
                area=len(rows),
                full_area=full_area,
                visible_fraction=round(len(rows) / full_area, 4),
            )
        )
    return Scene(image_id, size, size, domain, tuple(objects)), placed, visible


def _draw_looks(count: int, family: str | None, rng: np.random.Generator) -> list[dict[str, str]]:
    kinds = int(np.clip(round(count * rng.uniform(0.6, 0.9)), 1, count - 1))
    lead = {"A": FAMILY_A, "B": FAMILY_B, None: CATEGORIES}[family]
    names = list(rng.permutation(lead)[: -(-kinds * 3 // 5) if family else kinds])
    repeated = len(names)
    names += [c for c in rng.permutation(CATEGORIES) if c not in names][: kinds - repeated]
    names += [names[i] for i in rng.integers(repeated, size=count - len(names))]
    palette = rng.permutation(COLORS)[: rng.integers(3, 6)]
    odds = np.array([0.25, 0.35, 0.4] if count < 7 else [0.4, 0.42, 0.18])
    return [
        {
            "category": str(name),
            "color": str(rng.choice(palette)),
            "pattern": str(rng.choice(PATTERNS, p=_PATTERN_ODDS)),
            "size": str(rng.choice(list(SIZES), p=odds)),
            "detail": str(rng.choice(DETAILS, p=_DETAIL_ODDS)),
        }
        for name in rng.permutation(names)
    ]


def _place(
    looks: list[dict[str, str]], count: int, size: int, domain: str, rng: np.random.Generator
) -> list[Placed] | None:
    """Positions at which every object stays visible enough, or None if luck ran out."""
    placed: list[Placed] = []
    # A few objects may be hidden further than a target may be.
    least = np.where(rng.random(count) < 0.15, 0.45, 0.62)
    for look in looks:
        low, high = _CROWDED_LARGE if look["size"] == "large" and count >= 7 else SIZES[look["size"]]
        side = float(np.sqrt(rng.uniform(low, high) * size * size / fill_ratio(look["category"])))
        wobble = (rng.uniform(0.05, 0.1), rng.uniform(0, 6.28)) if domain == "blobs" else (0.0, 0.0)
        turn, mirror = rng.uniform(-12, 12), bool(rng.random() < 0.5)
        details = tuple(d for d in (look["detail"],) if d != "none")
        raster = rasterise(look["category"], details, side=side, angle=turn, mirror=mirror, wobble=wobble)
        for _ in range(60):
            item = _try_position(raster, look, placed, size, rng)
            if _all_stay(placed, item, least):
                placed.append(item)
                break
        else:
            return None
    return placed


def _try_position(
    raster: Raster, look: dict[str, str], placed: list[Placed], size: int, rng: np.random.Generator
) -> Placed:
    h, w = raster.alpha.shape
    x, y = rng.integers(0, size - w + 1), rng.integers(0, size - h + 1)
    if placed and rng.random() < 0.15:
        # Beside another object, close enough to hide a piece of it.
        rows, columns = placed[rng.integers(len(placed))].window
        turn, reach = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 0.95)
        x = (columns.start + columns.stop - w + np.cos(turn) * reach * (columns.stop - columns.start + w)) / 2
        y = (rows.start + rows.stop - h + np.sin(turn) * reach * (rows.stop - rows.start + h)) / 2
        x, y = int(np.clip(x, 0, size - w)), int(np.clip(y, 0, size - h))
    full = np.zeros((size, size), dtype=bool)
    full[y : y + h, x : x + w] = raster.alpha >= _SOLID
    return Placed(raster, (int(x), int(y)), look, full)


def _all_stay(placed: list[Placed], newcomer: Placed, least: np.ndarray) -> bool:
    """Whether each object keeps its ``least`` share of pixels with the newcomer in front of all."""
    cover = newcomer.full.copy()
    for item, share in zip(reversed(placed), least[: len(placed)][::-1], strict=True):
        if (item.full & ~cover).sum() < share * item.full.sum():
            return False
        cover |= item.full
    return True
