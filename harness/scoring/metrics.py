"""From predicted masks to scores: one row an expression, every figure a group-by over those rows.

Definitions (the arithmetic that LISA, GLaMM and GSVA share, without their epsilons):

* IoU of an expression is ``I / U`` in pixels at the photograph's own resolution, 1 where prediction
  and ground truth are both empty.
* **gIoU** is the mean IoU over expressions, **cIoU** is ``sum I / sum U``, **P@X** the share of
  expressions with IoU above ``X``, of those that mean something (as GRES's evaluation has it: ``nothing``
  answered to all would else score there).

Pixel counts are integers from the run-length codes; no mask is decoded and nothing is averaged
while it streams by. A failed prediction is an empty mask: it scores 0 and its ground truth joins the
union, and ``status`` says so.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.files import atomic_path
from harness.scoring.rle import overlap, without

__all__ = [
    "EXPRESSION_KEY",
    "RUN_KEY",
    "SCORE_COLUMNS",
    "THRESHOLDS",
    "check_scores",
    "expression_iou",
    "group_status",
    "read_scores",
    "score_predictions",
    "score_stage",
    "summarise",
]

RUN_KEY = ("projector", "variant", "budget", "seed")
EXPRESSION_KEY = ("dataset", "split", "ref_id", "sent_id")
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
SCORE_COLUMNS = (
    "study",
    *RUN_KEY,
    "dataset",
    "split",
    "protocol",
    "ref_id",
    "sent_id",
    "image_id",
    "intersection",
    "union",
    "gt_area",
    "pred_area",
    "visual_tokens",
    "seg_emitted",
    "status",
)
_PIXELS = ("intersection", "union", "gt_area", "pred_area")
_WHOLE = ("seed", "ref_id", "sent_id", "image_id", *_PIXELS, "visual_tokens")
_TEXT = ("study", "projector", "variant", "budget", "dataset", "split", "protocol", "status")
_PREDICTION_COLUMNS = (*(c for c in SCORE_COLUMNS if c not in _PIXELS), "rle", "height", "width")


def _need(frame: pd.DataFrame, columns: Sequence[str], origin: str) -> None:
    missing = [c for c in columns if c not in frame.columns]
    if missing:
        raise ValueError(f"{origin} lacks the columns {', '.join(missing)}; write it again with its stage")


def _whole(frame: pd.DataFrame, column: str, origin: str) -> pd.Series:
    values = frame[column]
    if values.isna().any() or not np.all(np.asarray(values, dtype=float) % 1 == 0):
        raise ValueError(f"{origin}: column {column} must hold whole numbers without gaps")
    return values.astype("int64")


def _name(rows: pd.DataFrame, limit: int = 5) -> str:
    shown = [f"{r.dataset}/{r.split} ref {r.ref_id} sent {r.sent_id}" for r in rows.head(limit).itertuples()]
    return ", ".join(shown) + (f" and {len(rows) - limit} more" if len(rows) > limit else "")


def _check_keys(predictions: pd.DataFrame, expected: pd.DataFrame, complete: bool, origin: str) -> None:
    key = list(EXPRESSION_KEY)
    double = predictions[predictions.duplicated(key)]
    if len(double):
        raise ValueError(f"{origin} scores an expression twice: {_name(double)}; predict it again")
    merged = expected[key].merge(predictions[key], on=key, how="outer", indicator=True)
    unknown = merged[merged["_merge"] == "right_only"]
    if len(unknown):
        raise ValueError(f"{origin} has expressions that the prepared tables lack: {_name(unknown)}")
    missing = merged[merged["_merge"] == "left_only"]
    if complete and len(missing):
        raise ValueError(
            f"{origin} lacks {len(missing)} of {len(expected)} expressions ({_name(missing)}); predict again"
        )


def score_predictions(
    predictions: pd.DataFrame,
    expressions: pd.DataFrame,
    annotations: pd.DataFrame,
    *,
    expected: pd.DataFrame | None = None,
    origin: str = "predictions",
) -> pd.DataFrame:
    """Score one run's predicted masks against the annotations they refer to.

    Args:
        predictions: one row an expression, with the mask as ``rle`` (COCO compressed counts; null
            where there is none), ``height`` and ``width`` (pixels).
        expressions: the prepared table; every expression of the predicted splits must be there.
        annotations: the prepared table, with ``rle``, ``height`` and ``width``.
        expected: the expressions that the protocol scores (columns ``EXPRESSION_KEY``), where it
            samples. Default: all of each predicted split under a protocol called ``full…``; under any
            other name only that no expression is unknown or scored twice is checked.
        origin: what errors call the predictions.

    Returns:
        A frame with ``SCORE_COLUMNS``, sorted by ``EXPRESSION_KEY``; pixel counts int64.

    Raises:
        ValueError: columns, keys, counts, sizes or codes are wrong; the message names the rows.
    """
    _need(predictions, _PREDICTION_COLUMNS, origin)
    _need(expressions, (*EXPRESSION_KEY, "ann_id", "image_id"), "expressions.parquet")
    _need(annotations, ("dataset", "ann_id", "rle", "height", "width"), "annotations.parquet")
    if predictions.empty:
        raise ValueError(f"{origin} is empty; predict it again")
    for column in ("study", "projector", "variant", "budget", "seed", "protocol"):
        if predictions[column].nunique(dropna=False) != 1:
            raise ValueError(f"{origin} must hold one run, but column {column} has several values")
    complete = expected is not None or str(predictions["protocol"].iloc[0]).startswith("full")
    if expected is None:
        splits = predictions[["dataset", "split"]].drop_duplicates()
        expected = expressions.merge(splits, on=["dataset", "split"])
    _check_keys(predictions, expected, complete, origin)

    columns = ["dataset", "ann_id", "rle", "height", "width"]
    if "rle_ignored" in annotations:
        columns.append("rle_ignored")
    truth = expressions[[*EXPRESSION_KEY, "ann_id", "image_id"]].merge(
        annotations[columns], on=["dataset", "ann_id"], how="left"
    )
    rows = predictions.merge(truth, on=list(EXPRESSION_KEY), how="left", suffixes=("", "_truth"))
    if len(rows) != len(predictions):
        raise ValueError("the prepared tables hold an annotation or expression twice; prepare the data again")
    if rows["rle_truth"].isna().any():
        raise ValueError(f"annotations.parquet lacks the mask of {_name(rows[rows['rle_truth'].isna()])}")
    sizes = (rows["height"] == rows["height_truth"]) & (rows["width"] == rows["width_truth"])
    if not sizes.all():
        raise ValueError(f"{origin}: masks are not at the photograph's resolution: {_name(rows[~sizes])}")
    if not (rows["image_id"] == rows["image_id_truth"]).all():
        other = rows[rows["image_id"] != rows["image_id_truth"]]
        raise ValueError(f"{origin} names another image than the prepared tables for {_name(other)}")

    if "rle_ignored" in rows:
        _take_ignored_away(rows, origin)
    masks = rows["rle"].where(rows["status"].eq("ok"))
    key_rows = rows[list(EXPRESSION_KEY)].itertuples(index=False)
    names = [f"{origin}: {d}/{s} ref {r} sent {t}" for d, s, r, t in key_rows]
    pixels = np.array(
        [
            overlap(None if pd.isna(ours) else str(ours), str(theirs), int(height), int(width), name)
            for ours, theirs, height, width, name in zip(
                masks, rows["rle_truth"], rows["height"], rows["width"], names, strict=True
            )
        ],
        dtype=np.int64,
    )
    rows["intersection"], rows["gt_area"], rows["pred_area"] = pixels.T
    rows["union"] = rows["gt_area"] + rows["pred_area"] - rows["intersection"]
    return check_scores(rows[list(SCORE_COLUMNS)], origin)


def _take_ignored_away(rows: pd.DataFrame, origin: str) -> None:
    """Pixels that a dataset does not score (ReasonSeg's) leave the prediction, as in LISA's evaluation."""
    for k in rows.index[rows["rle_ignored"].fillna("").ne("") & rows["rle"].notna()]:
        row = rows.loc[k]
        name = f"{origin}: {row['dataset']}/{row['split']} ref {row['ref_id']} sent {row['sent_id']}"
        size = int(row["height"]), int(row["width"])
        rows.loc[k, "rle"] = without(str(row["rle"]), str(row["rle_ignored"]), *size, name)


def check_scores(scores: pd.DataFrame, origin: str = "scores") -> pd.DataFrame:
    """The rows in the agreed columns, types and order, or an error that says what is wrong.

    Raises:
        ValueError: a column is missing, a key is double, or pixel counts cannot be.
    """
    _need(scores, SCORE_COLUMNS, origin)
    out = scores[list(SCORE_COLUMNS)].copy()
    for column in _WHOLE:
        out[column] = _whole(out, column, origin)
    for column in _TEXT:
        if out[column].isna().any():
            raise ValueError(f"{origin}: column {column} has gaps")
        out[column] = out[column].astype(str)
    out["seg_emitted"] = out["seg_emitted"].astype(bool)
    bad_status = ~(out["status"].eq("ok") | out["status"].str.startswith("failed: "))
    if bad_status.any():
        found = out["status"][bad_status].iloc[0]
        raise ValueError(f"{origin}: status must be 'ok' or 'failed: …', not '{found}'")
    key = [*RUN_KEY, "protocol", *EXPRESSION_KEY]
    if out.duplicated(key).any():
        raise ValueError(f"{origin} scores an expression twice: {_name(out[out.duplicated(key)])}")
    possible = (
        (out[list(_PIXELS)] >= 0).all(axis=1)
        & (out["intersection"] <= out[["gt_area", "pred_area"]].min(axis=1))
        & (out["union"] == out["gt_area"] + out["pred_area"] - out["intersection"])
        & (out["visual_tokens"] >= 0)
    )
    if not possible.all():
        raise ValueError(f"{origin}: impossible pixel counts for {_name(out[~possible])}; score it again")
    return out.sort_values(key, kind="stable", ignore_index=True)


def read_scores(paths: Sequence[Path | str]) -> pd.DataFrame:
    """All rows of several score files, each checked, and no row in two files.

    Raises:
        ValueError: a file is wrong, or two files score the same row.
    """
    frames = [check_scores(pd.read_parquet(path), str(path)) for path in sorted(map(str, paths))]
    if not frames:
        raise ValueError("there are no score files; run the score stage first")
    return check_scores(pd.concat(frames, ignore_index=True), "the score files together")


def expression_iou(scores: pd.DataFrame) -> NDArray[np.float64]:
    """IoU of each row ``[n]`` in 0–1; 1 where prediction and ground truth are both empty.

    A failed row is 0 even then: an empty mask that nobody predicted earns nothing.
    """
    union = scores["union"].to_numpy(np.float64)
    inter = scores["intersection"].to_numpy(np.float64)
    iou = np.divide(inter, union, out=np.ones_like(union), where=union > 0)
    return np.where(scores["status"].eq("ok"), iou, 0.0)


def group_status(statuses: pd.Series) -> str:
    """``ok``, or how many of the rows failed and the commonest reason."""
    failed = statuses[statuses != "ok"]
    if failed.empty:
        return "ok"
    counts = failed.value_counts()
    reason = min(counts[counts == counts.max()].index).removeprefix("failed: ")
    return f"failed: {len(failed)} of {len(statuses)} expressions ({reason})"


def summarise(scores: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """gIoU, cIoU, P@X and visual tokens of each group of rows.

    Where every row of a group failed nothing was measured: its figures are missing, not zero; and so is P@X
    where no expression has a target.

    Args:
        scores: rows with ``SCORE_COLUMNS``.
        by: columns to group by; several seeds in one group are pooled.

    Returns:
        ``by``, ``giou``, ``ciou``, ``p50`` … ``p90`` (0–1), ``n_expressions``, ``n_images``,
        ``tokens_mean``, ``tokens_p5``, ``tokens_p95`` (over expressions that did not fail), ``status``.
    """
    rows = scores.assign(iou=expression_iou(scores), done=scores["status"].eq("ok"))
    for threshold in THRESHOLDS:
        rows[f"p{threshold * 100:.0f}"] = (rows["iou"] > threshold).where(rows["gt_area"] > 0).astype(float)
    precision = [f"p{t * 100:.0f}" for t in THRESHOLDS]
    rows["tokens"] = rows["visual_tokens"].where(rows["done"]).astype(float)
    groups = rows.groupby(list(by), sort=True)
    out = groups[["iou", *precision]].mean().rename(columns={"iou": "giou"})
    totals = groups[["intersection", "union"]].sum()
    # All unions empty: every expression is a correct "nothing", as for gIoU.
    out.insert(1, "ciou", (totals["intersection"] / totals["union"].where(totals["union"] > 0)).fillna(1.0))
    out["n_expressions"] = groups.size()
    out["n_images"] = groups["image_id"].nunique()
    out["tokens_mean"] = groups["tokens"].mean()
    out["tokens_p5"] = groups["tokens"].quantile(0.05)
    out["tokens_p95"] = groups["tokens"].quantile(0.95)
    out["status"] = groups["status"].agg(group_status)
    out.loc[~groups["done"].any(), ["giou", "ciou", *precision]] = np.nan
    return out.reset_index()


def score_stage(
    prediction_path: Path | str,
    prepared_dir: Path | str,
    out_path: Path | str,
    *,
    expected: pd.DataFrame | None = None,
) -> None:
    """Score one run's prediction file into ``scores/<run>.parquet``; what the workflow calls.

    Args:
        prediction_path: ``predictions/<run>.parquet``.
        prepared_dir: holds ``expressions.parquet`` and ``annotations.parquet``.
        out_path: written atomically; equal input gives equal bytes.
        expected: see :func:`score_predictions`.
    """
    prepared = Path(prepared_dir)
    scores = score_predictions(
        pd.read_parquet(prediction_path),
        pd.read_parquet(prepared / "expressions.parquet"),
        pd.read_parquet(prepared / "annotations.parquet"),
        expected=expected,
        origin=str(prediction_path),
    )
    with atomic_path(out_path) as aside:
        scores.to_parquet(aside, index=False)
