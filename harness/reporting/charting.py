"""What the charts share: rows, labels, axes, the line under a figure."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from harness.reporting.context import ROW_KEY, ReportContext, row_label
from harness.reporting.style import MUTED

__all__ = [
    "WIDTH",
    "Row",
    "crowded",
    "footer",
    "label_of",
    "named_at_edge",
    "percent_axis",
    "rows_of",
    "select",
    "whiskers",
]

WIDTH = 7.2  # inches, two columns of a paper
Row = tuple[str, str, str]


def rows_of(table: pd.DataFrame) -> list[Row]:
    """The rows of the comparison in a table, in its order."""
    keys = table.drop_duplicates(list(ROW_KEY))[list(ROW_KEY)]
    return list(keys.itertuples(index=False, name=None))


def select(table: pd.DataFrame, row: Row) -> pd.DataFrame:
    """The lines of one row of the comparison."""
    return table[(table[list(ROW_KEY)] == list(row)).all(axis=1)]


def label_of(row: Row) -> str:
    """A row's name in legends, with its budget."""
    return row_label(*row, with_budget=True)


def crowded(table: pd.DataFrame) -> bool:
    """Whether a figure of these rows must make room: bars and their legend serve about ten."""
    return len(rows_of(table)) > 12


def whiskers(table: pd.DataFrame) -> np.ndarray:
    """``[2, rows]``: how far gIoU's interval reaches below and above."""
    value = table["giou"].to_numpy(float)
    bounds = [value - table["giou_low"].to_numpy(float), table["giou_high"].to_numpy(float) - value]
    return np.nan_to_num(np.clip(bounds, 0, None))


def footer(figure: Figure, context: ReportContext, text: str) -> None:
    """What the marks mean and what the data is, under the figure."""
    data = "synthetic scenes" if context.data == "synthetic" else "photographs"
    effort = "; effort: quick" if context.effort == "quick" else ""
    figure.supxlabel(f"{text} Data: {data}{effort}.", fontsize=6.5, color=MUTED, x=0.01, ha="left")


def named_at_edge(axes: Axes, place: float, value: str, color: str, *, right: bool) -> None:
    """A row beyond the axis: its value at the edge that it lies behind, on the row's line."""
    axes.annotate(
        f"{value} ▶" if right else f"◀ {value}",
        (0.99 if right else 0.01, place),
        xycoords=("axes fraction", "data"),
        ha="right" if right else "left",
        va="center",
        color=color,
        fontsize=7,
    )


def percent_axis(axis: Any) -> None:
    """Print fractions as percent."""
    axis.set_major_formatter(FuncFormatter(lambda v, _: f"{100 * v:.3g}"))
