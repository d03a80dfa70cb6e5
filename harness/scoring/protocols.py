"""What published evaluations would make of the same predictions.

The habits that are emulated are those found in the repositories' evaluation code; each is named after
the project that has it. None of them is a score of ours: they exist so that a published number can be
met on its own terms.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from harness.scoring.metrics import EXPRESSION_KEY, RUN_KEY, expression_iou
from harness.scoring.rle import overlap
from harness.scoring.scored import sample_expressions

__all__ = [
    "PROTOCOL_COLUMNS",
    "RERUNS",
    "protocol_table",
    "sum_polygons",
]

RERUNS = 5
_PLACE = ["dataset", "split"]
PROTOCOL_COLUMNS = (
    *(c for c in RUN_KEY if c != "seed"),
    *_PLACE,
    *("protocol", "giou", "giou_sd", "ciou", "ciou_sd", "n_expressions", "reruns", "seed_count"),
)


def sum_polygons(
    scores: pd.DataFrame, predictions: pd.DataFrame, expressions: pd.DataFrame, annotations: pd.DataFrame
) -> pd.DataFrame:
    """Score rows with an annotation's polygons added up in place of united.

    In LISA's and GLaMM's ground truth a pixel under two polygons has the value 2, which is neither of the
    two classes that they count: it is no target, and a prediction there is a false positive.

    Args:
        scores: rows of one run.
        predictions: the same run's masks.
        expressions: the prepared table.
        annotations: the prepared table, with ``rle_single``.

    Returns:
        ``scores`` with other ``intersection``, ``gt_area`` and ``union`` where polygons overlap.

    Raises:
        ValueError: the prepared tables are of an older version.
    """
    if "rle_single" not in annotations:
        raise ValueError("annotations.parquet has no column rle_single; run the prepare stage again")
    key = list(EXPRESSION_KEY)
    odd = annotations.loc[annotations["rle_single"].ne(""), ["dataset", "ann_id", "rle_single"]]
    rows = expressions[[*key, "ann_id"]].merge(odd, on=["dataset", "ann_id"])
    rows = rows.merge(predictions[[*key, "rle", "height", "width", "status"]], on=key)
    out = scores.set_index(key)
    for row in rows.itertuples(index=False):
        place = (row.dataset, row.split, row.ref_id, row.sent_id)
        mask = str(row.rle) if row.status == "ok" and row.rle is not None else None
        name = f"{row.dataset}/{row.split} ref {row.ref_id} sent {row.sent_id}"
        size = int(str(row.height)), int(str(row.width))
        inter, truth, predicted = overlap(mask, str(row.rle_single), *size, name)
        out.loc[place, ["intersection", "gt_area", "union"]] = (inter, truth, truth + predicted - inter)
    return out.reset_index()[list(scores.columns)]


def _plain(rows: pd.DataFrame) -> tuple[float, float]:
    union = rows["union"].sum()
    ciou = rows["intersection"].sum() / union if union else 1.0
    return float(expression_iou(rows).mean()), float(ciou)


def _per_image_mean(rows: pd.DataFrame) -> tuple[float, float]:
    """MLLMSeg: the meter of gIoU moves once an image, by that image's mean."""
    by_image = pd.Series(expression_iou(rows)).groupby(rows["image_id"].to_numpy()).mean()
    return float(by_image.mean()), _plain(rows)[1]


def _skipped_failures(rows: pd.DataFrame) -> tuple[float, float]:
    """Sa2VA: an expression without a mask is in gIoU's count, but in neither sum of cIoU."""
    found = rows[rows["seg_emitted"] & rows["status"].eq("ok")]
    giou = float(np.where(rows.index.isin(found.index), expression_iou(rows), 0.0).mean())
    return giou, _plain(found)[1] if len(found) else float("nan")


_EMULATED: dict[str, Callable[[pd.DataFrame], tuple[float, float]]] = {
    "full": _plain,
    "mllmseg-per-image-mean": _per_image_mean,
    "sa2va-skipped-failures": _skipped_failures,
}


def _row(values: Sequence[tuple[float, float]], count: int, seeds: int) -> dict[str, Any]:
    """Mean over seeds of the means over reruns, and the spread over reruns at one seed."""
    array = np.asarray(values, float).reshape(seeds, -1, 2)
    reruns = array.shape[1]
    spread = array.std(axis=1, ddof=1).mean(axis=0) if reruns > 1 else (np.nan, np.nan)
    giou, ciou = array.mean(axis=(0, 1))
    return {
        "giou": giou, "giou_sd": spread[0], "ciou": ciou, "ciou_sd": spread[1],
        "n_expressions": count, "reruns": reruns, "seed_count": seeds,
    }  # fmt: skip


def protocol_table(scores: pd.DataFrame, summed: pd.DataFrame | None = None) -> pd.DataFrame:
    """What each protocol makes of the same predictions of every expression.

    ``glamm-3sent`` is the mean over five draws and their standard deviation; with separate conversations
    a draw of predictions is the prediction of a draw. Rows that were predicted under a sampling protocol
    are left out: there is nothing to draw from.

    Args:
        scores: all rows of a study.
        summed: the same rows after :func:`sum_polygons`, for ``lisa-summed-polygons``.

    Returns:
        ``PROTOCOL_COLUMNS``; one row a row of the comparison, split and protocol. ``giou_sd`` and
        ``ciou_sd`` are over draws and empty elsewhere. Where the model spoke itself, names end in
        ``.generate``.
    """
    out: list[dict[str, Any]] = []
    key = list(PROTOCOL_COLUMNS[:3])
    whole = scores[scores["protocol"].str.startswith("full")]
    for group, part in whole.groupby([*key, *_PLACE, "protocol"], sort=True):
        place = dict(zip([*key, *_PLACE, "protocol"], map(str, group), strict=True))
        ending = place["protocol"].removeprefix("full")
        seeds = [rows for _, rows in part.groupby("seed", sort=True)]
        views = {name: [summary(rows) for rows in seeds] for name, summary in _EMULATED.items()}
        draws = [sample_expressions(rows, draw) for rows in seeds for draw in range(RERUNS)]
        views["glamm-3sent"] = [_plain(rows) for rows in draws]
        if summed is not None:
            mine = summed[np.logical_and.reduce([summed[k] == v for k, v in place.items()])]
            views["lisa-summed-polygons"] = [_plain(rows) for _, rows in mine.groupby("seed", sort=True)]
        for name, values in views.items():
            count = len(draws[0]) if name == "glamm-3sent" else len(seeds[0])
            out.append({**place, "protocol": name + ending, **_row(values, count, len(seeds))})
    return pd.DataFrame(out, columns=list(PROTOCOL_COLUMNS))
