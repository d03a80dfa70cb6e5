"""Charts of scores by split and by what an expression relies on: bars, or dots where rows are many.

Each takes tables that the tables stage wrote and returns a figure; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reporting.charting import (
    WIDTH,
    Row,
    crowded,
    footer,
    label_of,
    percent_axis,
    rows_of,
    select,
    whiskers,
)
from harness.reporting.context import ReportContext, split_order
from harness.reporting.style import PALETTE, Look

__all__ = ["per_split", "phenomena"]

_MARKS = ("o", "D", "^", "s", "v", "P")
_HATCHES = ("", "////", "....", "xxxx", "----", "\\\\\\\\", "++++", "oo")
_COLUMNS = 5


class _Panel(NamedTuple):
    """Scores in ``table``, grouped by ``column``: its ``values`` in the order drawn, and their ``names``."""

    title: str
    table: pd.DataFrame
    column: str
    values: Sequence[str]
    names: Sequence[str]


def _fill(row: Row, rows: list[Row], look: Mapping[str, Look], context: ReportContext) -> tuple[str, str]:
    """Face and hatch of a bar.

    Variants of a projector are shades of its colour, or colours of their own where it is alone in the study;
    those of a control are hatched.
    """
    variants = [r for r in rows if r[0] == row[0]]
    place = variants.index(row)
    if row[0] in context.controls:
        return "white", _HATCHES[place % len(_HATCHES)]
    own = look[row[0]].color
    if len({r[0] for r in rows} - set(context.controls)) == 1:
        others = [color for color in PALETTE if color != own]
        return [own, *others][place % len(PALETTE)], ""
    # from the colour itself to a quarter of it
    return sns.light_palette(own, 4 * len(variants), reverse=True)[3 * place], ""


def _bars(
    axes: Axes, panel: _Panel, rows: list[Row], look: Mapping[str, Look], context: ReportContext
) -> None:
    width = 0.84 / len(rows)
    for k, row in enumerate(rows):
        part = select(panel.table, row).set_index(panel.column).reindex(list(panel.values))
        x = np.arange(len(panel.values)) + (k - (len(rows) - 1) / 2) * width
        control = row[0] in context.controls
        face, hatch = _fill(row, rows, look, context)
        axes.bar(
            x,
            part["giou"],
            width * (0.8 if control else 0.9),
            color=face,
            edgecolor=look[row[0]].color if control else "white",
            hatch=hatch,
            linewidth=1.0 if control else 0.4,
            label=label_of(row),
        )
        axes.errorbar(x, part["giou"], yerr=whiskers(part), fmt="none", ecolor="#333333", elinewidth=0.7)
    axes.set_xticks(range(len(panel.values)), list(panel.names))
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    percent_axis(axes.yaxis)


def _marks(panels: Sequence[_Panel]) -> dict[str, tuple[str, str]]:
    """A marker and a colour for each name, the same in every panel."""
    names = dict.fromkeys(name for panel in panels for name in panel.names)
    return {name: (_MARKS[k % len(_MARKS)], PALETTE[k % len(PALETTE)]) for k, name in enumerate(names)}


def _dots(
    axes: Axes,
    panel: _Panel,
    rows: list[Row],
    marks: Mapping[str, tuple[str, str]],
    context: ReportContext,
) -> None:
    """A line a row, a mark a group, one beneath the other so that intervals stay apart."""
    for k, row in enumerate(rows):
        part = select(panel.table, row).set_index(panel.column).reindex(list(panel.values))
        control = row[0] in context.controls
        y = k + np.linspace(-0.25, 0.25, len(panel.values)) if len(panel.values) > 1 else np.array([float(k)])
        bounds = whiskers(part)
        for j, (name, giou) in enumerate(zip(panel.names, part["giou"], strict=True)):
            marker, color = marks[name]
            axes.errorbar(
                giou,
                y[j],
                xerr=bounds[:, [j]],
                color=color,
                marker=marker,
                mfc="white" if control else color,
                ms=3.2,
                mew=0.8,
                elinewidth=0.7,
            )
    axes.set_yticks(range(len(rows)), [label_of(r) for r in rows])
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    percent_axis(axes.xaxis)


def _chart(panels: list[_Panel], look: Mapping[str, Look], context: ReportContext, measure: str) -> Figure:
    """One panel beside the other: bars for a few rows, dots on a line for each of many."""
    rows = rows_of(pd.concat([panel.table for panel in panels]))
    many = crowded(panels[0].table)
    size = (WIDTH, 1.1 + 0.2 * len(rows)) if many else (WIDTH, 2.7)
    marks = _marks(panels)
    ratios = [1 if many else len(panel.values) for panel in panels]
    figure, grid = plt.subplots(1, len(panels), figsize=size, sharey=True, squeeze=False, width_ratios=ratios)
    for axes, panel in zip(grid[0], panels, strict=True):
        if many:
            _dots(axes, panel, rows, marks, context)
            axes.set_xlabel(measure)
        else:
            _bars(axes, panel, rows, look, context)
        axes.set_title(panel.title)
    if many:
        names = list(marks)
        handles = [Line2D([], [], ls="", marker=m, color=c, ms=4.5) for m, c in marks.values()]
    else:
        grid[0][0].set_ylabel(measure)
        grid[0][0].set_ylim(0, None)  # when all panels are drawn, which share it
        handles, names = grid[0][0].get_legend_handles_labels()
    _legend(figure, handles, names)
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Hollow: controls.")
    return figure


def _legend(figure: Figure, handles: Sequence[Artist], names: Sequence[str]) -> None:
    """Above the panels, to be read line by line, where matplotlib fills it column by column."""
    columns = -(-len(names) // -(-len(names) // _COLUMNS))
    order = [k for first in range(columns) for k in range(first, len(names), columns)]
    figure.legend(
        [handles[k] for k in order],
        [names[k] for k in order],
        loc="outside upper center",
        ncols=columns,
    )


def per_split(scores: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """GIoU of every row on every split, a panel a dataset, with intervals; controls hollow."""
    places = split_order(list(zip(scores["dataset"], scores["split"], strict=True)))
    splits = list(dict.fromkeys(split for _, split in places))
    panels = []
    for dataset in dict.fromkeys(d for d, _ in places):
        own = [s for s in splits if (dataset, s) in places]
        panels.append(_Panel(dataset, scores[scores["dataset"] == dataset], "split", own, own))
    return _chart(panels, look, context, "gIoU (%)")


def phenomena(table: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Mean gIoU over splits by what the expression relies on; controls hollow."""
    table = table[table["dataset"] == "all"]
    kinds = [k for k in ("attribute", "location", "relation") if k in set(table["phenomenon"])]
    kinds += sorted(set(table["phenomenon"]) - set(kinds))
    counts = table.groupby("phenomenon")["n_expressions"].max()
    names = [f"{k}\n{counts[k]:,} expressions" for k in kinds]
    measure = "gIoU, mean over splits (%)"
    return _chart([_Panel("", table, "phenomenon", kinds, names)], look, context, measure)
