"""The chart of a study's differences: every row minus the reference, with all that is known to blur it."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.figure import Figure

from harness.files import read_json
from harness.reporting.aggregate import differences_to
from harness.reporting.charting import WIDTH, Row, footer, label_of, named_at_edge, rows_of
from harness.reporting.context import ReportContext, read_csv
from harness.reporting.retraining import widened
from harness.reporting.style import INK, MUTED, PALETTE

__all__ = ["Differences", "difference_chart", "read_differences"]

# Rows that lie this many times as far off as the farthest projector are named at the edge.
_FAR = 1.6


class Differences(NamedTuple):
    """What a study's tables say of its first protocol.

    Attributes:
        context: of the study.
        overall: a line a row of the comparison.
        reference: the row that the others are held against.
        gaps: of each other row ``difference, low, high, p`` of its mean gIoU over splits minus the
            reference's, a fraction, with its paired 95 % interval over images.
    """

    context: ReportContext
    overall: pd.DataFrame
    reference: Row
    gaps: dict[Row, tuple[float, float, float, float]]


def read_differences(tables: Path) -> Differences:
    """From ``tables/`` of a study or of a snapshot."""
    context = ReportContext.checked(read_json(tables / "context.json"))
    overall, pairs = read_csv(tables / "overall.csv"), read_csv(tables / "differences.csv")
    protocol = overall["protocol"].iloc[0]
    overall, pairs = (t[t["protocol"].eq(protocol)] for t in (overall, pairs))
    rows = rows_of(overall)
    labels = [label_of(row) for row in rows]
    reference = rows[labels.index(context.reference)] if context.reference in labels else rows[0]
    return Differences(context, overall, reference, differences_to(pairs, reference))


def difference_chart(read: Differences, half: float | None) -> Figure:
    """A line a row, the best first, controls beneath: paired difference, interval over images, and widened.

    A row whose widest interval holds 0 is grey: the study cannot tell it from the reference.

    Args:
        read: the rows.
        half: of the 95 % interval that training two rows again leaves; ``None`` where nobody knows.
    """
    context, gaps, controls = read.context, read.gaps, read.context.controls
    if not gaps:
        figure, axes = plt.subplots(figsize=(WIDTH, 0.8))
        axes.set_axis_off()
        axes.text(0, 0.5, f"No row of this study is held against {label_of(read.reference)}.", color=MUTED)
        return figure
    ranked = sorted(gaps, key=lambda row: (row[0] in controls, -gaps[row][0]))
    own = [row for row in ranked if row[0] not in controls] or ranked
    spans = {row: widened(*gaps[row][:3], half or 0.0) for row in ranked}
    reach = _FAR * max(0.01, *(abs(end) for row in own for end in spans[row]))
    near = [end for row in ranked if abs(gaps[row][0]) <= reach for end in spans[row]]
    left, right = min(0.0, *near), max(0.0, *near)
    pad = max(0.06 * (right - left), 0.002)
    figure, axes = plt.subplots(figsize=(WIDTH, 0.95 + 0.19 * len(ranked)))
    axes.axvline(0, color=INK, lw=0.9, zorder=1)
    for place, row in enumerate(ranked):
        (gap, low, high, _), span = gaps[row], spans[row]
        told = span[0] > 0 or span[1] < 0
        color = PALETTE[0] if told else MUTED
        if abs(gap) > reach:
            named_at_edge(axes, place, f"{100 * gap:+.1f}", color, right=gap > 0)
            continue
        axes.plot(span, [place, place], color=color, lw=0.8, zorder=2)
        axes.plot([low, high], [place, place], color=color, lw=2.6, alpha=0.75, zorder=3)
        face = "white" if row[0] in controls else color
        axes.plot(gap, place, "o", mfc=face, mec=color, mew=1.1, ms=4.6, zorder=4)
    if len(own) < len(ranked):
        axes.axhline(len(own) - 0.5, color=MUTED, lw=0.6, ls=(0, (1, 2)), zorder=1)
    axes.set_yticks(range(len(ranked)), [label_of(row) for row in ranked])
    axes.set(xlim=(left - pad, right + pad), ylim=(len(ranked) - 0.4, -0.6))
    axes.tick_params(axis="y", length=0)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+.3g}" if value else "0")
    axes.set_xlabel(f"gIoU minus {label_of(read.reference)}'s, mean over splits (points)")
    counts = dict(zip(rows_of(read.overall), read.overall["tokens_mean"], strict=True))
    tokens = axes.secondary_yaxis("right")
    tokens.set_yticks(range(len(ranked)), [f"{counts[row]:.1f}".removesuffix(".0") for row in ranked])
    tokens.tick_params(axis="y", length=0)
    tokens.spines["right"].set_visible(False)
    # A label along the axis would be longer than a chart of few rows is high.
    axes.annotate(
        "visual tokens",
        (1, 1),
        (0, 3),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        fontsize=7,
        color=MUTED,
    )
    blur = "Thick: 95 % over images, paired."
    if half is not None:
        blur += f" Thin: training again too (±{100 * half:.1f}). Grey: not told apart."
    footer(figure, context, f"{blur} Hollow: controls.")
    return figure
