"""Direct labels that keep off points and each other, by the same choice every time."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib.patheffects as effects
from matplotlib.axes import Axes
from matplotlib.transforms import Bbox

__all__ = ["place_labels"]

# Offsets in points from the marker, best first, with the alignment that goes with each.
_SPOTS = (
    *((7, 4, "left", "bottom"), (7, -4, "left", "top"), (-7, 4, "right", "bottom"), (-7, -4, "right", "top")),
    *(
        (0, 8, "center", "bottom"),
        (0, -8, "center", "top"),
        (10, 0, "left", "center"),
        (-10, 0, "right", "center"),
    ),
    *(
        (9, 14, "left", "bottom"),
        (9, -14, "left", "top"),
        (-9, 14, "right", "bottom"),
        (-9, -14, "right", "top"),
    ),
)


def _overlap(a: Bbox, b: Bbox) -> float:
    both = Bbox.intersection(a, b)
    return 0.0 if both is None else both.width * both.height


def place_labels(axes: Axes, labels: Sequence[tuple[float, float, str, str]], fontsize: float = 7.0) -> None:
    """Write ``(x, y, text, color)`` beside its point, where it covers least of what is there already.

    Labels are placed in order of the text, greedily; limits must be final, as they are not moved after.
    """
    figure = axes.get_figure()
    if figure is None or not labels:
        return
    figure.canvas.draw()
    renderer = figure.canvas.get_renderer()  # type: ignore[attr-defined]
    frame = axes.get_window_extent(renderer)
    points = [axes.transData.transform((x, y)) for x, y, _, _ in labels]
    scale = figure.dpi / 72
    taken = [Bbox.from_bounds(px - 4 * scale, py - 4 * scale, 8 * scale, 8 * scale) for px, py in points]
    for x, y, text, color in sorted(labels, key=lambda item: (item[2], item[0], item[1])):
        best: tuple[float, int] | None = None
        for rank, (dx, dy, ha, va) in enumerate(_SPOTS):
            note = axes.annotate(
                text, (x, y), (dx, dy), textcoords="offset points", ha=ha, va=va, fontsize=fontsize
            )
            box = note.get_window_extent(renderer)
            note.remove()
            outside = box.width * box.height - _overlap(box, frame)
            cost = sum(_overlap(box, other) for other in taken) + 2 * outside
            if best is None or cost < best[0] - 1e-6:
                best = (cost, rank)
        assert best is not None
        dx, dy, ha, va = _SPOTS[best[1]]
        note = axes.annotate(
            text,
            (x, y),
            (dx, dy),
            textcoords="offset points",
            ha=ha,
            va=va,
            fontsize=fontsize,
            color=color,
            zorder=5,
        )
        note.set_path_effects([effects.withStroke(linewidth=2, foreground="white")])
        taken.append(note.get_window_extent(renderer).padded(2 * scale))
