"""Charts of visual tokens: against gIoU, and against the objects in the image.

Each takes tables that the tables stage wrote and returns a figure; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.reporting.charting import (
    WIDTH,
    Row,
    crowded,
    footer,
    label_of,
    named_at_edge,
    percent_axis,
    rows_of,
    select,
    whiskers,
)
from harness.reporting.context import ReportContext, records, row_label
from harness.reporting.labels import Label, place_labels
from harness.reporting.style import MUTED, Look

__all__ = ["tokens_vs_giou", "tokens_vs_objects"]

# Rows whose mean counts differ by no more than this factor read as many tokens.
_ONE_COUNT = 1.1
_TICKS = (1, 2, 4, 9, 16, 36, 64, 144, 256, 576)


def _limits(table: pd.DataFrame, controls: tuple[str, ...]) -> tuple[float, float]:
    """The gIoU axis fits the projectors, and those controls that are not far off."""
    ours = table[~table["projector"].isin(controls)]
    ours = table if ours.empty else ours
    reach = max(ours["giou"].max() - ours["giou"].min(), 0.06) / 2
    near = table[table["giou"].between(ours["giou"].min() - reach, ours["giou"].max() + reach)]
    low = near["giou_low"].fillna(near["giou"]).min()
    high = near["giou_high"].fillna(near["giou"]).max()
    pad = max(0.08 * (high - low), 0.005)
    return low - pad, high + pad


def _point(axes: Axes, row: Any, look: Look, control: bool) -> None:
    low, high = (row.tokens_mean - row.tokens_p5, row.tokens_p95 - row.tokens_mean)
    spread = [[max(low, 0)], [max(high, 0)]] if high > 0 or low > 0 else None
    axes.errorbar(
        row.tokens_mean,
        row.giou,
        yerr=whiskers(pd.DataFrame([row._asdict()])),
        xerr=spread,
        color=look.color,
        fmt="none",
        elinewidth=0.9,
        alpha=0.6,
    )
    face = "white" if control else look.color
    axes.plot(
        row.tokens_mean, row.giou, look.marker, mfc=face, mec=look.color, mew=1.2, ms=6, zorder=4, alpha=0.95
    )


def _far_off(axes: Axes, rows: pd.DataFrame, look: Mapping[str, Look], middle: float) -> None:
    """Rows beyond the axis are named at its edge, with their gIoU."""
    count = {True: 0, False: 0}
    for row in records(rows):
        above = row.giou > middle
        text = f"{'▲' if above else '▼'} {row_label(row.projector, row.variant, row.budget)} {row.giou:.1%}"
        axes.annotate(
            text.replace("%", " %"),
            (0.012, 0.985 if above else 0.015),
            (0, (-9 if above else 9) * count[above]),
            xycoords="axes fraction",
            textcoords="offset points",
            va="top" if above else "bottom",
            color=look[row.projector].color,
            fontsize=7,
        )
        count[above] += 1


def _of_one_count(table: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Rows that read the same number of tokens, one under the other: an axis of tokens would tell nothing."""
    rows, (left, right) = records(table), _limits(table, context.controls)
    figure, axes = plt.subplots(figsize=(0.72 * WIDTH, 0.9 + 0.24 * len(rows)))
    reach = whiskers(table)
    for place, row in enumerate(rows):
        color, marker = look[row.projector].color, look[row.projector].marker
        if left <= row.giou <= right:
            face = "white" if row.projector in context.controls else color
            axes.errorbar(
                row.giou,
                place,
                xerr=reach[:, [place]],
                fmt=marker,
                color=color,
                mfc=face,
                mew=1.2,
                ms=6,
                elinewidth=0.9,
            )
            continue
        named_at_edge(axes, place, f"{100 * row.giou:.1f} %", color, right=row.giou > right)
    axes.set_yticks(range(len(rows)), [row_label(r.projector, r.variant, r.budget) for r in rows])
    axes.set(xlim=(left, right), ylim=(len(rows) - 0.4, -0.6))
    percent_axis(axes.xaxis)
    counts = f"{table['tokens_mean'].min():.1f}", f"{table['tokens_mean'].max():.1f}"
    axes.set_xlabel(f"gIoU, mean over splits (%), at {' to '.join(dict.fromkeys(counts))} visual tokens")
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Hollow: controls.")
    return figure


def tokens_vs_giou(overall: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Mean gIoU over splits against visual tokens (log axis), intervals as whiskers, controls hollow.

    The stepped line is the best projector with at most that many tokens. The axis fits the projectors; a
    control far above or below is named at the edge. Rows without visual tokens are a dashed line. Where all
    rows read about as many tokens, as in an ablation of one projector, they stand one under the other.

    Args:
        overall: ``overall.csv``, one protocol.
        look: colour and marker by projector.
        context: controls and captions.
    """
    table = overall.dropna(subset=["giou", "tokens_mean"])
    if len(table) > 1 and table["tokens_mean"].max() <= _ONE_COUNT * table["tokens_mean"].min():
        return _of_one_count(table, look, context)
    figure, axes = plt.subplots(figsize=(WIDTH, 4.6) if crowded(table) else (0.72 * WIDTH, 3.4))
    placed = table[table["tokens_mean"] > 0]
    labels = []
    bottom, top = _limits(table, context.controls)
    for row in records(placed):
        _point(axes, row, look[row.projector], row.projector in context.controls)
        if bottom <= row.giou <= top:
            text = row_label(row.projector, row.variant, row.budget)
            labels.append(Label(row.tokens_mean, row.giou, text, look[row.projector].color))
    ours = placed[~placed["projector"].isin(context.controls)].sort_values(["tokens_mean", "giou"])
    front = ours[ours["giou"] >= ours["giou"].cummax()]
    axes.set_xscale("log", base=2)
    counts = sorted({round(t) for t in placed["tokens_mean"]})
    if counts:
        ticks = [c for c in _TICKS if counts[0] / 2 <= c <= counts[-1] * 2]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        # The bars reach past the means; none is cut at the edge.
        shown = placed.loc[placed["giou"].between(bottom, top)]
        left = min(counts[0] / 1.7, shown["tokens_p5"].clip(lower=0.5).min() / 1.1)
        right = max(counts[-1] * 1.7, shown["tokens_p95"].max() * 1.1)
        axes.set_xlim(left, right)
    if len(front):
        x, y = [*front["tokens_mean"], right], [*front["giou"], front["giou"].iloc[-1]]
        axes.step(x, y, where="post", color="#9A9A9A", lw=0.9, ls=(0, (1, 2)), zorder=1)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_ylim(bottom, top)
    beyond = ~table["giou"].between(bottom, top)
    for row in records(table[(table["tokens_mean"] == 0) & ~beyond]):
        axes.axhline(row.giou, color=MUTED, lw=1, ls=(0, (4, 3)), zorder=0)
        axes.annotate(
            f"{row.projector} (no language model)",
            (1, row.giou),
            xycoords=("axes fraction", "data"),
            ha="right",
            va="bottom",
            color=MUTED,
            fontsize=7,
        )
    _far_off(axes, table[beyond].sort_values("giou"), look, (bottom + top) / 2)
    percent_axis(axes.yaxis)
    axes.set_xlabel("visual tokens at the language model's input (mean; bar: 5th to 95th percentile)")
    axes.set_ylabel("gIoU, mean over splits (%)")
    place_labels(axes, labels)
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Dotted: best so far. Hollow: controls.")
    return figure


def tokens_vs_objects(
    images: pd.DataFrame, tokens: pd.DataFrame, look: Mapping[str, Look], context: ReportContext
) -> Figure:
    """How adaptive projectors spend tokens: their histogram, and tokens against objects in the image.

    Args:
        images: one row an image and row of the comparison: ``ROW_KEY``, ``tokens``, ``objects``.
        tokens: ``tokens.csv``, for Spearman's rho.
        look: colour and marker by projector.
        context: captions.
    """
    adaptive: list[Row] = []
    # Of equal counts the projector's is the one to show, not that of a control that acts on it.
    for row in sorted(rows_of(images), key=lambda row: row[0] in context.controls):
        spent = select(images, row)["tokens"].to_numpy()
        # A control that acts on a finished run spends that run's tokens: one curve for both.
        same = any(np.array_equal(spent, select(images, r)["tokens"].to_numpy()) for r in adaptive)
        if len(set(spent)) > 1 and not same:
            adaptive.append(row)
    figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.8))
    if not adaptive:
        for axes in (left, right):
            axes.set_axis_off()
        left.text(
            0, 0.5, "Every row of this study uses the same number of tokens for all images.", color=MUTED
        )
        return figure
    everything = np.concatenate([select(images, r)["tokens"] for r in adaptive])
    step = max(1, int(np.ceil(np.ptp(everything) / 40)))
    edges = np.arange(np.floor(everything.min()), np.ceil(everything.max()) + 2 * step, step) - step / 2
    offsets = np.linspace(-0.12, 0.12, len(adaptive)) if len(adaptive) > 1 else [0.0]
    for row, offset in zip(adaptive, offsets, strict=True):
        part = select(images, row)
        color = look[row[0]].color
        share = np.full(len(part), 1 / len(part))
        left.hist(part["tokens"], edges, weights=share, histtype="stepfilled", color=color, alpha=0.22)
        left.hist(part["tokens"], edges, weights=share, histtype="step", color=color, lw=1.2)
        left.axvline(part["tokens"].mean(), color=color, lw=1, ls=(0, (4, 3)))
        spend = part.groupby("objects")["tokens"]
        low, middle, high = (spend.quantile(q) for q in (0.25, 0.5, 0.75))
        x = middle.index.to_numpy(float) + offset
        rho = select(tokens, row)["spearman_rho"].iloc[0]
        right.errorbar(
            x,
            middle,
            yerr=[middle - low, high - middle],
            color=color,
            marker=look[row[0]].marker,
            ms=4.5,
            lw=1.2,
            elinewidth=0.9,
            mfc="white" if row[0] in context.controls else color,
            label=f"{label_of(row)}: ρ = {rho:.2f}",
        )
    left.set_xlabel("visual tokens of an image")
    left.set_ylabel("share of images (%)")
    left.set_title("Tokens spent")
    percent_axis(left.yaxis)
    right.set_xlabel("annotated objects in the image")
    right.set_ylabel("visual tokens (median, quartiles)")
    right.set_title("Tokens against objects")
    title = "Spearman's rank correlation"
    right.legend(loc="upper left", bbox_to_anchor=(1, 1), title=title, title_fontsize=7, alignment="left")
    right.set_ylim(0, None)
    footer(
        figure,
        context,
        "Dashed: mean. Left out: rows with a fixed count or the very counts of another.",
    )
    return figure
