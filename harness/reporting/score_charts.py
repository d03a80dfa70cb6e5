"""Charts of scores: tokens against gIoU, splits, phenomena, tokens against objects.

Each takes tables that the tables stage wrote and returns a figure; nothing is computed anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from harness.reporting.charting import WIDTH, Row, footer, label_of, percent_axis, rows_of, select
from harness.reporting.context import ReportContext, records, row_label, split_order
from harness.reporting.labels import place_labels
from harness.reporting.style import INK, MUTED, Look

__all__ = ["per_split_bars", "phenomena_bars", "tokens_vs_giou", "tokens_vs_objects"]


def _whiskers(table: pd.DataFrame) -> np.ndarray:
    value = table["giou"].to_numpy(float)
    bounds = [value - table["giou_low"].to_numpy(float), table["giou_high"].to_numpy(float) - value]
    return np.nan_to_num(np.clip(bounds, 0, None))


def tokens_vs_giou(overall: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Mean gIoU over splits against visual tokens (log axis), intervals as whiskers, controls hollow.

    The stepped line is the best projector with at most that many tokens. Rows without visual
    tokens (an oracle) are a dashed line.

    Args:
        overall: ``overall.csv``, one protocol.
        look: colour and marker by projector.
        context: controls and captions.
    """
    figure, axes = plt.subplots(figsize=(0.72 * WIDTH, 3.4))
    table = overall.dropna(subset=["giou", "tokens_mean"])
    placed = table[table["tokens_mean"] > 0]
    labels = []
    for row in records(placed):
        control = row.projector in context.controls
        mine = look[row.projector]
        low, high = (row.tokens_mean - row.tokens_p5, row.tokens_p95 - row.tokens_mean)
        spread = [[max(low, 0)], [max(high, 0)]] if high > 0 or low > 0 else None
        whisker = _whiskers(pd.DataFrame([row._asdict()]))
        axes.errorbar(
            row.tokens_mean,
            row.giou,
            yerr=whisker,
            xerr=spread,
            color=mine.color,
            fmt="none",
            elinewidth=1,
            alpha=0.75,
        )
        face = "white" if control else mine.color
        axes.plot(
            row.tokens_mean,
            row.giou,
            mine.marker,
            mfc=face,
            mec=mine.color,
            mew=1.2,
            ms=6.5,
            zorder=4,
            clip_on=False,
        )
        text = row_label(row.projector, row.variant, row.budget)
        labels.append((row.tokens_mean, row.giou, text, MUTED if control else INK))
    ours = placed[~placed["projector"].isin(context.controls)].sort_values(["tokens_mean", "giou"])
    front = ours[ours["giou"] >= ours["giou"].cummax()]
    axes.set_xscale("log", base=2)
    counts = sorted({round(t) for t in placed["tokens_mean"]})
    if counts:
        ticks = [c for c in (1, 2, 4, 9, 16, 36, 64, 144, 256, 576) if counts[0] / 2 <= c <= counts[-1] * 2]
        axes.set_xticks(ticks, [str(t) for t in ticks])
        axes.set_xlim(counts[0] / 1.7, counts[-1] * 1.7)
    if len(front):
        x, y = [*front["tokens_mean"], counts[-1] * 1.7], [*front["giou"], front["giou"].iloc[-1]]
        axes.step(x, y, where="post", color="#9A9A9A", lw=0.9, ls=(0, (1, 2)), zorder=1)
    axes.xaxis.set_minor_locator(NullLocator())
    for row in records(table[table["tokens_mean"] == 0]):
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
    percent_axis(axes.yaxis)
    axes.margins(y=0.12)
    axes.set_xlabel("visual tokens at the language model's input (mean; bar: 5th to 95th percentile)")
    axes.set_ylabel("gIoU, mean over splits (%)")
    place_labels(axes, labels)
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Dotted: best so far. Hollow: controls.")
    return figure


def _grouped_bars(
    axes: Axes,
    table: pd.DataFrame,
    column: str,
    values: Sequence[str],
    rows: list,
    look: Mapping[str, Look],
    context,
) -> None:
    width = 0.84 / len(rows)
    for k, row in enumerate(rows):
        part = select(table, row).set_index(column).reindex(list(values))
        x = np.arange(len(values)) + (k - (len(rows) - 1) / 2) * width
        control = row[0] in context.controls
        color = look[row[0]].color
        variants = [r for r in rows if r[0] == row[0]]
        hatch = ("", "////", "....", "xxxx")[variants.index(row) % 4]
        axes.bar(
            x,
            part["giou"],
            width * (0.8 if control else 0.9),
            color="white" if control else color,
            edgecolor=color if control else "white",
            hatch=hatch,
            linewidth=1.0 if control else 0.4,
            label=label_of(row),
        )
        axes.errorbar(x, part["giou"], yerr=_whiskers(part), fmt="none", ecolor="#333333", elinewidth=0.7)
    axes.set_xticks(range(len(values)), list(values))
    axes.grid(axis="x", visible=False)
    axes.tick_params(axis="x", length=0)
    axes.set_ylim(0, None)
    percent_axis(axes.yaxis)


def per_split_bars(scores: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Bars of gIoU of every row on every split, a panel a dataset, with intervals; controls hollow."""
    places = split_order(list(zip(scores["dataset"], scores["split"], strict=True)))
    datasets = list(dict.fromkeys(d for d, _ in places))
    ratios = [sum(d == dataset for d, _ in places) for dataset in datasets]
    figure, grid = plt.subplots(
        1, len(datasets), figsize=(WIDTH, 2.7), sharey=True, squeeze=False, width_ratios=ratios
    )
    rows = rows_of(scores)
    for axes, dataset in zip(grid[0], datasets, strict=True):
        part = scores[scores["dataset"] == dataset]
        _grouped_bars(axes, part, "split", [s for d, s in places if d == dataset], rows, look, context)
        axes.set_title(dataset)
    grid[0][0].set_ylabel("gIoU (%)")
    handles, names = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(5, len(names)))
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Hollow: controls.")
    return figure


def phenomena_bars(phenomena: pd.DataFrame, look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Mean gIoU over splits by what the expression relies on; controls hollow."""
    table = phenomena[phenomena["dataset"] == "all"]
    figure, axes = plt.subplots(figsize=(WIDTH, 2.7))
    kinds = [k for k in ("attribute", "location", "relation") if k in set(table["phenomenon"])]
    kinds += sorted(set(table["phenomenon"]) - set(kinds))
    _grouped_bars(axes, table, "phenomenon", kinds, rows_of(table), look, context)
    counts = table.groupby("phenomenon")["n_expressions"].max()
    axes.set_xticks(range(len(kinds)), [f"{k}\n{counts[k]:,} expressions" for k in kinds])
    axes.set_ylabel("gIoU, mean over splits (%)")
    handles, names = axes.get_legend_handles_labels()
    figure.legend(handles, names, loc="outside upper center", ncols=min(5, len(names)))
    footer(figure, context, "Whiskers: 95 % bootstrap over images. Hollow: controls.")
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
    for row in rows_of(images):
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
    right.legend(loc="upper left", title="Spearman's rank correlation", title_fontsize=7, alignment="left")
    right.set_ylim(0, right.get_ylim()[1] * 1.25)
    footer(
        figure,
        context,
        "Dashed: mean. Left out: rows with a fixed count or the very counts of another.",
    )
    return figure
