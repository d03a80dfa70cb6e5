"""Charts of runs: training loss by step, and where the time of an inference goes."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from harness.reporting.charting import WIDTH, Row, crowded, footer, label_of, rows_of
from harness.reporting.context import ROW_KEY, ReportContext, order_rows, records
from harness.reporting.style import PALETTE, Look

__all__ = ["loss_curves", "read_log", "run_row", "stage_times"]

# Stages of one inference, in order; other timings (totals, training steps) are no part of the stack.
_PIPELINE = ("vision", "sam_encode", "superpixels", "project", "prefill", "mask")
# Timings of stages that an inference holds: from the photograph on, what follows stored features too.
_HOLDS = {"cold": ("cold", "cached"), "cached": ("cached",)}


def read_log(path: Path | str) -> pd.DataFrame:
    """A training log: ``stage``, ``step``, ``loss`` and its parts; what it says of starts is left out.

    Raises:
        ValueError: a line is not JSON or lacks ``stage``, ``step`` or ``loss``.
    """
    lines = []
    for number, line in enumerate(Path(path).read_text().splitlines(), 1):
        try:
            value = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{path}, line {number} is not JSON; train this run again") from error
        if not isinstance(value, dict):
            raise ValueError(f"{path}, line {number} is not a JSON object; train this run again")
        if "event" not in value:
            lines.append(value)
    frame = pd.DataFrame(lines, columns=None if lines else ["stage", "step", "loss"])
    if not {"stage", "step", "loss"} <= set(frame.columns):
        raise ValueError(f"{path} must hold stage, step and loss on every line; train this run again")
    # A resumed run may log a step again: the later line is what the weights have seen.
    return frame.drop_duplicates(["stage", "step"], keep="last").sort_values(
        ["stage", "step"], ignore_index=True
    )


def run_row(path: Path | str) -> Row:
    """The row of a run's log: its folder is called ``projector.variant.budget.sSEED``."""
    projector, *variant, budget, _ = Path(path).parent.name.split(".")
    return projector, ".".join(variant), budget


def _smooth(loss: pd.Series) -> pd.Series:
    return loss.ewm(span=max(3, len(loss) // 12), adjust=True).mean()


def loss_curves(log_paths: Sequence[Path | str], look: Mapping[str, Look], context: ReportContext) -> Figure:
    """Training loss by step: a panel a stage, raw faint, smoothed bold; of many rows a panel each."""
    logs = [(run_row(p), read_log(p)) for p in sorted(map(str, log_paths))]
    found = pd.DataFrame(list(dict.fromkeys(row for row, _ in logs)), columns=list(ROW_KEY))
    rows = rows_of(order_rows(found, context))
    logs.sort(key=lambda item: rows.index(item[0]))
    if crowded(found):
        return _loss_of_each(logs, rows, look, context)
    stages = sorted({int(s) for _, log in logs for s in log["stage"].unique()}) or [1]
    figure, grid = plt.subplots(1, len(stages), figsize=(WIDTH, 2.7), sharey=True, squeeze=False)
    styles = ("-", (0, (4, 1.5)), (0, (1, 1)), (0, (6, 1, 1, 1)))
    named: set[Row] = set()
    for axes, stage in zip(grid[0], stages, strict=True):
        for row, log in logs:
            part = log[log["stage"] == stage]
            if part.empty:
                continue
            color = look[row[0]].color
            style = styles[[r for r in rows if r[0] == row[0]].index(row) % len(styles)]
            axes.plot(part["step"], part["loss"], color=color, lw=0.5, alpha=0.25)
            name = None if row in named else label_of(row)
            axes.plot(part["step"], _smooth(part["loss"]), color=color, ls=style, label=name)
            named.add(row)
        axes.set_title(f"Stage {stage}")
        axes.set_xlabel("optimiser step")
    grid[0][0].set_ylabel("training loss")
    handles = [h for axes in grid[0] for h in axes.get_legend_handles_labels()[0]]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=min(5, len(handles)))
    footer(figure, context, "Faint: as logged. Bold: exponentially smoothed. The stages sum other losses.")
    return figure


def _loss_of_each(
    logs: list[tuple[Row, pd.DataFrame]], rows: list[Row], look: Mapping[str, Look], context: ReportContext
) -> Figure:
    """A small panel a row, its stages one behind the other, all other rows grey behind it."""
    columns = 5
    lines = -(-len(rows) // columns)
    size = (WIDTH, 0.5 + 1.15 * lines)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharex=True, sharey=True, squeeze=False)
    curves = []
    for row, log in logs:
        before = 0
        for _, part in log.groupby("stage", sort=True):
            curves.append((row, part["step"] + before, _smooth(part["loss"])))
            before += int(part["step"].max())
    for axes in grid.flat[len(rows) :]:
        axes.set_axis_off()
    for axes, row in zip(grid.flat, rows, strict=False):
        for other, steps, loss in curves:
            if other != row:
                axes.plot(steps, loss, color="#DDDDDD", lw=0.5, zorder=1)
        for other, steps, loss in curves:
            if other == row:
                axes.plot(steps, loss, color=look[row[0]].color, lw=1.1, zorder=2)
        axes.set_title(label_of(row), fontsize=6.5, fontweight="normal")
        axes.tick_params(labelsize=6)
    figure.supylabel("training loss", fontsize=8)
    footer(
        figure,
        context,
        "Training loss by optimiser step, stage 2 (other losses) behind stage 1, smoothed. Grey: all others.",
    )
    return figure


def stage_times(efficiency: pd.DataFrame, context: ReportContext) -> Figure:
    """Where the time of one inference goes, stacked by stage, a panel a case and batch.

    ``cold`` is all of it, from the photograph on; ``cached`` starts from stored features and superpixels.
    """
    table = efficiency[efficiency["stage"].isin(_PIPELINE)].dropna(subset=["median_ms"])
    panels = list(dict.fromkeys(table[["case", "batch"]].itertuples(index=False, name=None))) or [("", 0)]
    columns = 2 if len(panels) in (2, 4) else min(3, len(panels))
    lines = -(-len(panels) // columns)
    rows = rows_of(table)
    size = (WIDTH, lines * (0.75 + 0.2 * max(2, len(rows))) + 0.6)
    figure, grid = plt.subplots(lines, columns, figsize=size, sharey=True, squeeze=False)
    colors = dict(zip(_PIPELINE, PALETTE, strict=False))
    used = [s for s in _PIPELINE if s in set(table["stage"])]
    for axes in grid.flat[len(panels) :]:
        axes.set_axis_off()
    for axes, (case, batch) in zip(grid.flat, panels, strict=False):
        part = table[table["case"].isin(_HOLDS.get(case, ())) & (table["batch"] == batch)]
        start = np.zeros(len(rows))
        for stage in used:
            times = part[part["stage"] == stage].set_index(list(ROW_KEY))["median_ms"].reindex(rows).fillna(0)
            axes.barh(
                range(len(rows)), times, left=start, color=colors[stage], height=0.72, lw=0.4, ec="white"
            )
            start += times.to_numpy(float)
        axes.set_yticks(range(len(rows)), [label_of(r) for r in rows])
        axes.set_ylim(len(rows) - 0.4, -0.6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_title(f"{case}, batch {batch}" if case else "no timings")
        axes.set_xlabel("ms (median)")
    handles = [
        Line2D([], [], marker="s", ls="", color=colors[s], label=s.replace("_", " "), ms=6) for s in used
    ]
    if handles:
        figure.legend(handles=handles, loc="outside upper center", ncols=len(handles))
    machine = ", ".join(sorted({f"{r.device}, {r.dtype}, {r.attention} attention" for r in records(table)}))
    footer(figure, context, f"{machine}." if machine else "")
    return figure
