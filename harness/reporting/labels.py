"""Direct labels that keep off points and each other, by the same choice every time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import matplotlib.patheffects as effects
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

__all__ = ["Label", "place_labels"]

# Points from the marker to the label's nearest edge, nearest first; from _FAR on a line leads back.
_RINGS = (7, 14, 24, 36, 50, 66, 84)
_FAR = 20
_ANGLES = tuple(math.radians(a) for a in (25, -25, 155, -155, 90, -90, 0, 180, 55, -55, 125, -125))


class Label(NamedTuple):
    """A text beside a point, in data coordinates."""

    x: float
    y: float
    text: str
    color: str


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


def _box(px: float, py: float, dx: float, dy: float, width: float, height: float) -> Bbox:
    """Where a label of that size stands whose edge nearest to the point is ``(dx, dy)`` away from it."""
    left = dx - (0 if dx > 1e-6 else width if dx < -1e-6 else width / 2)
    low = dy - height / 2
    return Bbox.from_bounds(px + left, py + low, width, height)


def place_labels(axes: Axes, labels: Sequence[Label], fontsize: float = 7.0) -> None:
    """Write each label where it covers least of what is there already, as near to its point as that allows.

    Labels are placed from the right end of the axis to the left and from the top down, greedily; limits must
    be final, as they are not moved after.
    """
    figure = axes.get_figure()
    if figure is None or not labels:
        return
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    scale = figure.dpi / 72
    at = {label: tuple(axes.transData.transform((label.x, label.y))) for label in labels}
    taken = [Bbox.from_bounds(px - 4 * scale, py - 4 * scale, 8 * scale, 8 * scale) for px, py in at.values()]
    taken += [text.get_window_extent(renderer) for text in axes.texts]
    for label in sorted(labels, key=lambda item: (-round(at[item][0]), -item.y, item.text)):
        px, py = at[label]
        probe = axes.text(label.x, label.y, label.text, fontsize=fontsize)
        extent = probe.get_window_extent(renderer)
        probe.remove()
        best: tuple[float, Bbox, int] | None = None
        for ring in _RINGS:
            for angle in _ANGLES:
                dx, dy = ring * scale * math.cos(angle), ring * scale * math.sin(angle)
                box = _box(px, py, dx, dy, extent.width, extent.height)
                outside = box.width * box.height - _overlap(box, frame)
                cost = sum(_overlap(box, other) for other in taken) + 4 * outside
                cost += 0.02 * ring * scale * extent.height  # farther only to come free
                if best is None or cost < best[0] - 1e-6:
                    best = (cost, box, ring)
        assert best is not None
        _, box, ring = best
        x, y = axes.transData.inverted().transform((box.x0, box.y0))
        note = axes.annotate(
            label.text,
            (label.x, label.y),
            (x, y),
            fontsize=fontsize,
            color=label.color,
            ha="left",
            va="bottom",
            zorder=5,
            arrowprops={"arrowstyle": "-", "lw": 0.5, "color": label.color, "shrinkA": 0, "shrinkB": 3}
            if ring >= _FAR
            else None,
        )
        note.set_path_effects([effects.withStroke(linewidth=2, foreground="white")])
        taken.append(box.padded(2 * scale))
