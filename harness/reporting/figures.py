"""The figures stage: every chart is drawn from the tables and the training logs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from harness.files import read_json
from harness.reporting import score_charts
from harness.reporting.context import ROW_KEY, ReportContext, read_csv
from harness.reporting.difference_chart import difference_chart, read_differences
from harness.reporting.retraining import training_half
from harness.reporting.style import house_style, looks, save
from harness.reporting.tables import object_counts, prepared_of
from harness.reporting.token_charts import tokens_vs_giou, tokens_vs_objects
from harness.reporting.training_charts import loss_curves, run_row, stage_times
from harness.scoring.metrics import read_scores

__all__ = ["FIGURE_NAMES", "figures_stage", "image_tokens"]

FIGURE_NAMES = (
    "tokens_vs_giou",
    "differences",
    "per_split",
    "phenomena",
    "tokens_vs_objects",
    "loss_curves",
    "stage_times",
)


def image_tokens(
    score_paths: Sequence[Path | str], prepared: Path | str | Mapping[str, Path | str]
) -> pd.DataFrame:
    """Visual tokens and objects, a row an image and row of the comparison (mean over expressions, seeds)."""
    counts: dict[Path, pd.Series] = {}
    key = [*ROW_KEY, "image_id"]
    parts = []
    for path in sorted(map(str, score_paths)):
        folder = prepared_of(prepared, path)
        if folder not in counts:
            counts[folder] = object_counts(folder)
        rows = read_scores([path])
        rows = rows[rows["status"].eq("ok")]
        rows = rows.assign(objects=rows["image_id"].map(counts[folder]))
        # Summed run by run: the expressions of hundreds of runs would fill the memory.
        tokens = {"tokens": ("visual_tokens", "sum"), "expressions": ("visual_tokens", "size")}
        parts.append(rows.groupby(key, sort=True).agg(**tokens, objects=("objects", "first")).reset_index())
    sums = {"tokens": ("tokens", "sum"), "expressions": ("expressions", "sum")}
    images = pd.concat(parts).groupby(key, sort=True).agg(**sums, objects=("objects", "first")).reset_index()
    return images.assign(tokens=images["tokens"] / images["expressions"]).drop(columns="expressions")


def figures_stage(
    tables_dir: Path | str,
    score_paths: Sequence[Path | str],
    log_paths: Sequence[Path | str],
    prepared_dir: Path | str | Mapping[str, Path | str],
    out_dir: Path | str,
) -> list[Path]:
    """Draw every chart of a study; what the workflow calls. Overlays of images are a stage of their own.

    Args:
        tables_dir: what :func:`harness.reporting.tables.tables_stage` wrote (with ``context.json``).
        score_paths: ``scores/<run>.parquet`` of every run.
        log_paths: ``runs/<run>/log.jsonl`` of every trained run.
        prepared_dir: the folder with ``annotations.parquet`` (or one for each run id), for the objects of
            each image.
        out_dir: ``results/<study>/figures``.

    Returns:
        The files written: those of ``FIGURE_NAMES``, each as PNG and PDF; ``tokens_vs_giou``, ``per_split``
        and ``phenomena`` once more for every protocol but the first, with its name.
    """
    tables = Path(tables_dir)
    context = ReportContext.checked(read_json(tables / "context.json"))
    overall, scores, phenomena, tokens, efficiency = (
        read_csv(tables / f"{name}.csv")
        for name in ("overall", "scores", "phenomena", "tokens", "efficiency")
    )
    look = looks([*overall["projector"], *(run_row(p)[0] for p in log_paths)])
    written: list[Path] = []
    with house_style():
        for number, protocol in enumerate(dict.fromkeys(overall["protocol"])):
            end = f"_{protocol}" if number else ""
            parts = [t[t["protocol"].eq(protocol)] for t in (overall, scores, phenomena)]
            written += save(tokens_vs_giou(parts[0], look, context), out_dir, f"tokens_vs_giou{end}")
            written += save(score_charts.per_split(parts[1], look, context), out_dir, f"per_split{end}")
            written += save(score_charts.phenomena(parts[2], look, context), out_dir, f"phenomena{end}")
        chart = difference_chart(read_differences(tables), training_half(tables.parent))
        written += save(chart, out_dir, "differences")
        images = image_tokens(score_paths, prepared_dir)
        written += save(tokens_vs_objects(images, tokens, look, context), out_dir, "tokens_vs_objects")
        written += save(loss_curves(log_paths, look, context), out_dir, "loss_curves")
        written += save(stage_times(efficiency, context), out_dir, "stage_times")
    return written
