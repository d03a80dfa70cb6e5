"""The tables stage: score rows and timings in, CSV, Markdown and LaTeX out.

Fractions stay 0–1 in CSV; percent appears only in ``main.md`` and ``main.tex``. ``scores.csv`` holds
no measured time, so that a resumed or a Slurm run must give it back byte for byte.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from harness.reporting.aggregate import (
    SCORES_COLUMNS,
    adaptivity,
    expressions_with,
    phenomena_table,
    score_tables,
)
from harness.reporting.context import (
    ROW_KEY,
    ReportContext,
    canonical_context,
    order_rows,
    read_efficiency,
    write_csv,
    write_text,
)
from harness.reporting.published import published_markdown
from harness.reporting.render import (
    adaptivity_notes,
    main_markdown,
    main_tex,
    timing_notes,
    training_notes,
)
from harness.reporting.searches import search_notes, search_table
from harness.scoring.metrics import RUN_KEY, read_scores
from harness.scoring.protocols import protocol_table, sum_polygons

__all__ = ["MAIN_COLUMNS", "TABLE_FILES", "main_table", "object_counts", "prepared_of", "tables_stage"]

MAIN_COLUMNS = (
    *SCORES_COLUMNS,
    "speedup_infer",
    "speedup_train",
    "parameters",
    "layer_tokens",
    "learning_rate",
    *("speedup_infer_low", "speedup_infer_high", "speedup_train_low", "speedup_train_high"),
)
TABLE_FILES = (
    *("scores.csv", "overall.csv", "differences.csv", "phenomena.csv", "tokens.csv", "protocols.csv"),
    *("efficiency.csv", "learning_rates.csv"),
    *("main.csv", "main.md", "main.tex", "context.json"),
)


def main_table(
    scores: pd.DataFrame,
    relative: pd.DataFrame,
    parameters: pd.DataFrame,
    learning_rates: Mapping[str, float] | None = None,
) -> pd.DataFrame:
    """``scores.csv`` joined with what else is known of a row; empty where it was not measured.

    Args:
        scores: the frame of ``scores.csv``.
        relative: speed-ups.
        parameters: trainable parameters, and visual tokens a layer where a row drops some on the way.
        learning_rates: by ``projector.variant.budget``.
    """
    key = list(ROW_KEY)
    out = scores.merge(relative, on=key, how="left", validate="many_to_one")
    out = out.merge(parameters.drop(columns="step_budgets"), on=key, how="left", validate="many_to_one")
    out["parameters"] = out["parameters"].astype("Int64")
    names = out[key].agg(".".join, axis=1)
    out["learning_rate"] = names.map(dict(learning_rates or {})).astype(float)
    return out[list(MAIN_COLUMNS)]


def object_counts(prepared_dir: Path | str) -> pd.Series:
    """Annotated objects of each image, by ``image_id``; datasets that share an image share its objects."""
    table = pd.read_parquet(Path(prepared_dir) / "annotations.parquet", columns=["image_id", "ann_id"])
    return table[table["ann_id"] >= 0].groupby("image_id")["ann_id"].nunique()  # made-up ids are negative


def prepared_of(prepared: Path | str | Mapping[str, Path | str], path: Path | str) -> Path:
    """The prepared folder of a run's file: the one folder, or the one named for the run's id."""
    if not isinstance(prepared, Mapping):
        return Path(prepared)
    run = Path(path).stem
    if run not in prepared:
        raise ValueError(
            f"{path}: no prepared folder is named for the run {run}; name it or resolve the study again"
        )
    return Path(prepared[run])


def _with_prepared(
    score_paths: Sequence[Path | str], prepared: Path | str | Mapping[str, Path | str], context: ReportContext
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Phenomena and adaptivity, each run against the tables that it was scored on."""
    folders: dict[Path, list[str]] = {}
    for path in map(str, score_paths):
        folders.setdefault(prepared_of(prepared, path), []).append(path)
    rows, tokens = [], []
    for folder, paths in sorted(folders.items()):
        scores = read_scores(paths)
        expressions = pd.read_parquet(folder / "expressions.parquet")
        rows.append(expressions_with(scores, expressions, "phenomenon"))
        tokens.append(adaptivity(scores, object_counts(folder), context))
    return phenomena_table(pd.concat(rows, ignore_index=True), context), pd.concat(tokens, ignore_index=True)


def _summed(
    scores: pd.DataFrame,
    prediction_paths: Sequence[Path | str],
    prepared: Path | str | Mapping[str, Path | str],
) -> pd.DataFrame:
    """All score rows with polygons added up, each run against the tables that it was scored on."""
    parts = []
    for path in prediction_paths:
        predictions = pd.read_parquet(path)
        folder = Path(prepared_of(prepared, path))
        mine = np.logical_and.reduce([scores[c] == predictions[c].iloc[0] for c in RUN_KEY])
        expressions = pd.read_parquet(folder / "expressions.parquet")
        annotations = pd.read_parquet(folder / "annotations.parquet")
        parts.append(sum_polygons(scores[mine], predictions, expressions, annotations))
    return pd.concat(parts, ignore_index=True)


def tables_stage(
    score_paths: Sequence[Path | str],
    efficiency_paths: Sequence[Path | str],
    prepared_dir: Path | str | Mapping[str, Path | str],
    out_dir: Path | str,
    context: ReportContext | Mapping[str, Any],
    learning_rates: Mapping[str, float] | None = None,
    *,
    prediction_paths: Sequence[Path | str] = (),
    searches: Mapping[str, Mapping[str, Any]] | None = None,
) -> None:
    """Write every table of a study (``TABLE_FILES``); what the workflow calls.

    Args:
        score_paths: ``scores/<run>.parquet`` of every run.
        efficiency_paths: files of the efficiency stage; may be empty.
        prepared_dir: the folder with ``expressions.parquet`` and ``annotations.parquet``, or one for
            each run id where rows of a study were scored on different data.
        out_dir: ``results/<study>/tables``.
        context: see :class:`harness.reporting.context.ReportContext`.
        learning_rates: what rows were trained at, by ``projector.variant.budget``.
        prediction_paths: ``predictions/<run>.parquet`` of every run, for the protocol that scores with
            another ground truth; without them it is left out.
        searches: what the learning-rate search of a row wrote, by ``projector.variant.budget``.

    Raises:
        ValueError: an input does not keep its form; the message names the file and the mend.
    """
    context = ReportContext.checked(context)
    out = Path(out_dir)
    timings, parameters, relative = read_efficiency(efficiency_paths)
    rows = read_scores(score_paths)
    scores, overall, differences = score_tables(rows, context)
    summed = _summed(rows, prediction_paths, prepared_dir) if prediction_paths else None
    phenomena, tokens = _with_prepared(score_paths, prepared_dir, context)
    main = main_table(scores, relative, parameters, learning_rates)

    write_csv(out / "scores.csv", scores)
    write_csv(out / "overall.csv", overall)
    write_csv(out / "differences.csv", differences)
    write_csv(out / "phenomena.csv", phenomena)
    write_csv(out / "tokens.csv", order_rows(tokens, context), "%.6g")
    write_csv(out / "protocols.csv", order_rows(protocol_table(rows, summed), context))
    write_csv(out / "efficiency.csv", order_rows(timings, context), "%.6g")
    searched = order_rows(search_table(searches or {}, context.tuning), context)
    write_csv(out / "learning_rates.csv", searched, "%.6g")
    write_csv(out / "main.csv", main)
    notes = [
        *search_notes(searched),
        *training_notes(order_rows(parameters, context)),
        *adaptivity_notes(order_rows(tokens, context), context),
        *timing_notes(timings),
    ]
    markdown = main_markdown(main, overall, differences, context, notes)
    if context.data == "real" and context.published:
        markdown += "".join("\n\n" + published_markdown(context.published, main, m) for m in ("giou", "ciou"))
    write_text(out / "main.md", markdown)
    write_text(out / "main.tex", main_tex(main, overall, differences, context, notes))
    write_text(out / "context.json", canonical_context(context))
