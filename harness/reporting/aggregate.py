"""Group-bys with intervals: what every table and figure is made of.

One set of image draws serves all rows scored on the same photographs, so that intervals differ only
through the scores, and the difference of any two rows is paired.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.reporting.context import ROW_KEY, ReportContext, order_rows, records
from harness.scoring.metrics import EXPRESSION_KEY, THRESHOLDS, group_status, summarise
from harness.scoring.statistics import Resampler, difference_interval, image_sums, spearman

__all__ = [
    "DIFFERENCE_COLUMNS",
    "SCORES_COLUMNS",
    "adaptivity",
    "differences_to",
    "phenomena_table",
    "score_tables",
]

SCORES_COLUMNS = (
    *ROW_KEY,
    *("dataset", "split", "protocol"),
    *("giou", "giou_low", "giou_high", "giou_sd", "ciou", "ciou_low", "ciou_high"),
    *(f"p{t * 100:.0f}" for t in THRESHOLDS),
    *("n_expressions", "n_images", "tokens_mean", "tokens_p5", "tokens_p95", "seed_count", "status"),
    "fp_share",
)
# gIoU to P@0.9, and false positives: missing where a whole cell failed
_MEASURED = (*SCORES_COLUMNS[6:18], "fp_share")
# of each metric with paired differences: the difference, its interval and its p-value
DIFFERENCE_COLUMNS = {
    "giou": ("giou_difference", "low", "high", "p_value"),
    "fp_share": ("fp_share_difference", "fp_share_low", "fp_share_high", "fp_share_p_value"),
}
_RowKey = tuple[str, str, str]


@dataclass(frozen=True)
class _Row:
    """Figures of one row of a comparison, and those of DIFFERENCE_COLUMNS in every resample, by metric.

    ``truth`` is equal where rows were scored on the same expressions with the same masks; ``draws`` is
    ``None`` where the row was not measured.
    """

    figures: dict[str, Any]
    truth: str
    draws: dict[str, NDArray[np.float64]] | None


def _one_row(part: pd.DataFrame, cells: pd.DataFrame, resampler: Resampler, columns: list[str]) -> _Row:
    """Figures of one row; ``cells`` are its summaries by ``columns`` (seeds, or splits and seeds)."""
    precision = [f"p{t * 100:.0f}" for t in THRESHOLDS]
    places = [c for c in columns if c != "seed"]
    counts = cells.groupby(places)["n_expressions"].agg(["first", "nunique"]) if places else None
    first = int(cells["n_expressions"].iloc[0] if counts is None else counts["first"].sum())
    if (cells["n_expressions"].nunique() if counts is None else counts["nunique"].max()) > 1:
        name = ".".join(part[list(ROW_KEY)].iloc[0])
        raise ValueError(f"the seeds of {name} scored different numbers of expressions; score them again")
    by_seed = cells.groupby("seed")["giou"].mean()
    tokens = part.loc[part["status"].eq("ok"), "visual_tokens"]
    figures: dict[str, Any] = {
        "giou_sd": by_seed.std(ddof=1) if len(by_seed) > 1 else np.nan,
        **{p: cells[p].mean() for p in precision},
        "n_expressions": first,
        "n_images": len(resampler.images),
        "tokens_mean": tokens.mean(),
        "tokens_p5": tokens.quantile(0.05),
        "tokens_p95": tokens.quantile(0.95),
        "seed_count": len(by_seed),
        "status": group_status(part["status"]),
    }
    draws = {}
    for metric, sums in image_sums(part, resampler.images, columns).items():
        interval = resampler.interval(*sums)
        bounds = (interval.value, interval.low, interval.high)
        figures |= dict(zip((metric, f"{metric}_low", f"{metric}_high"), bounds, strict=True))
        if metric in DIFFERENCE_COLUMNS:
            draws[metric] = resampler.distribution(*sums)
    # Synthetic scenes of another look or seed have the same ids; the targets' areas tell them apart.
    asked = part[[*EXPRESSION_KEY, "image_id", "gt_area"]].drop_duplicates().sort_values([*EXPRESSION_KEY])
    truth = hashlib.sha256(pd.util.hash_pandas_object(asked, index=False).to_numpy().tobytes()).hexdigest()
    if cells["giou"].isna().any():  # an average without the cell that failed would flatter
        return _Row({**figures, **dict.fromkeys(_MEASURED, np.nan)}, truth, None)
    return _Row(figures, truth, draws)


def _rows(
    scores: pd.DataFrame, names: Sequence[object], resamples: int, over_splits: bool = False
) -> Iterator[tuple[tuple, _Row]]:
    """Every row of the comparison on one split (or averaged over all splits), one after the other."""
    columns = ["dataset", "split", "seed"] if over_splits else ["seed"]
    resamplers: dict[tuple[int, ...], Resampler] = {}
    summaries = dict(list(summarise(scores, [*ROW_KEY, *columns]).groupby(list(ROW_KEY))))
    for key, part in scores.groupby(list(ROW_KEY), sort=True):
        images = tuple(sorted(set(part["image_id"])))
        if images not in resamplers:
            strata = None
            if over_splits:
                places = part.assign(place=part["dataset"] + "/" + part["split"])
                strata = places.groupby("image_id", sort=True)["place"].agg(
                    lambda s: "|".join(sorted(set(s)))
                )
            resamplers[images] = Resampler(
                images,
                names=names,
                strata=None if strata is None else strata.loc[list(images)].tolist(),
                resamples=resamples,
            )
        yield key, _one_row(part, summaries[key], resamplers[images], columns)


def _differences(rows: dict[tuple, _Row], context: ReportContext) -> list[dict[str, Any]]:
    """Paired differences of all pairs of rows that were asked the same of the same photographs."""
    order = order_rows(pd.DataFrame(list(rows), columns=list(ROW_KEY)), context)
    out: list[dict[str, Any]] = []
    for a, b in combinations(order.itertuples(index=False, name=None), 2):
        ours, theirs = rows[a], rows[b]
        if ours.draws is None or theirs.draws is None:
            continue
        if ours.truth != theirs.truth or ours.figures["n_images"] < 2:
            continue
        pair = {
            **dict(zip(ROW_KEY, a, strict=True)),
            **{f"other_{k}": v for k, v in zip(ROW_KEY, b, strict=True)},
        }
        for metric, columns in DIFFERENCE_COLUMNS.items():
            value = ours.figures[metric] - theirs.figures[metric]
            told = (value, *difference_interval(ours.draws[metric] - theirs.draws[metric]))
            pair |= dict(zip(columns, told, strict=True))
        out.append(pair)
    return out


def differences_to(
    pairs: pd.DataFrame, to: _RowKey, metric: str = "giou", place: tuple[str, str] = ("all", "all")
) -> dict[_RowKey, tuple[float, float, float, float]]:
    """``difference, low, high, p`` of each row minus ``to``; the table holds a pair once, either way round.

    Args:
        pairs: the frame of ``differences.csv``, one protocol.
        to: ``projector, variant, budget``.
        metric: of ``DIFFERENCE_COLUMNS``.
        place: dataset and split; by default the mean over splits.
    """
    found: dict[_RowKey, tuple[float, float, float, float]] = {}
    for pair in records(pairs[pairs["dataset"].eq(place[0]) & pairs["split"].eq(place[1])]):
        one = tuple(getattr(pair, key) for key in ROW_KEY)
        other = tuple(getattr(pair, f"other_{key}") for key in ROW_KEY)
        gap, low, high, p = (getattr(pair, column) for column in DIFFERENCE_COLUMNS[metric])
        if other == to:
            found[one] = (gap, low, high, p)
        elif one == to:
            found[other] = (-gap, -high, -low, p)
    return found


def score_tables(
    scores: pd.DataFrame, context: ReportContext
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """The three score tables.

    Args:
        scores: all rows of a study.
        context: order of rows and number of resamples.

    Returns:
        ``scores.csv`` (one row a row of the comparison and split), ``overall.csv`` (the unweighted
        mean over splits; ``n_splits``) and ``differences.csv`` (all paired differences of gIoU and of
        ``fp_share`` on each split and overall; dataset and split are ``all`` there). All are fractions;
        ``fp_share`` is the share of predicted pixels that lie outside the target, over all expressions of
        a split, and missing where nothing was predicted.

    Raises:
        ValueError: the seeds of a row did not score the same number of expressions.
    """
    split_rows, overall, differences = [], [], []
    for (protocol, dataset, split), part in scores.groupby(["protocol", "dataset", "split"], sort=True):
        place = {"dataset": dataset, "split": split, "protocol": protocol}
        rows = dict(_rows(part, (dataset, split, protocol), context.resamples))
        split_rows += [{**dict(zip(ROW_KEY, k, strict=True)), **place, **r.figures} for k, r in rows.items()]
        differences += [{**d, **place} for d in _differences(rows, context)]
    for protocol, part in scores.groupby("protocol", sort=True):
        rows = dict(_rows(part, ("overall", protocol), context.resamples, over_splits=True))
        split_count = (part["dataset"] + "/" + part["split"]).groupby([part[k] for k in ROW_KEY]).nunique()
        for key, row in rows.items():
            splits = {"protocol": protocol, "n_splits": int(split_count.loc[key])}
            overall.append({**dict(zip(ROW_KEY, key, strict=True)), **splits, **row.figures})
        place = {"dataset": "all", "split": "all", "protocol": protocol}
        differences += [{**d, **place} for d in _differences(rows, context)]
    table = order_rows(pd.DataFrame(split_rows)[list(SCORES_COLUMNS)], context)
    columns = [*ROW_KEY, "protocol", "n_splits", *SCORES_COLUMNS[6:]]
    pair = [*ROW_KEY, *(f"other_{k}" for k in ROW_KEY), "dataset", "split", "protocol"]
    measured = [column for columns in DIFFERENCE_COLUMNS.values() for column in columns]
    pairs = pd.DataFrame(differences, columns=[*pair, *measured])
    return table, order_rows(pd.DataFrame(overall)[columns], context), pairs


def phenomena_table(scores: pd.DataFrame, context: ReportContext) -> pd.DataFrame:
    """Scores by what an expression relies on: location, relation or attribute.

    Args:
        scores: all rows of a study, with a column ``phenomenon``.
        context: order of rows and number of resamples.

    Returns:
        One row a row of the comparison, split and phenomenon, and the mean over splits (dataset and
        split ``all``), with intervals.
    """
    out = []
    for (protocol, phenomenon), part in scores.groupby(["protocol", "phenomenon"], sort=True):
        places: list[tuple[Any, pd.DataFrame]] = [(("all", "all"), part)]
        places += list(part.groupby(["dataset", "split"], sort=True))
        for (dataset, split), rows in places:
            over_splits = dataset == "all"
            names = ("phenomenon", phenomenon, dataset, split, protocol)
            for key, row in _rows(rows, names, context.resamples, over_splits):
                place = {"dataset": dataset, "split": split, "protocol": protocol, "phenomenon": phenomenon}
                out.append({**dict(zip(ROW_KEY, key, strict=True)), **place, **row.figures})
    figures = ["giou", "giou_low", "giou_high", "ciou", "ciou_low", "ciou_high", "n_expressions", "n_images"]
    columns = [*ROW_KEY, "dataset", "split", "protocol", "phenomenon", *figures]
    return order_rows(pd.DataFrame(out)[columns], context)


def adaptivity(scores: pd.DataFrame, objects: pd.Series, context: ReportContext) -> pd.DataFrame:
    """Whether busier photographs get more visual tokens: Spearman's rho over images.

    Args:
        scores: all rows of a study.
        objects: annotated objects of each image, indexed by ``image_id``.
        context: order of rows.

    Returns:
        One row a row of the comparison: ``tokens_min``, ``tokens_max`` (image means over expressions
        and seeds), ``spearman_rho``, ``p_value`` (empty where the count is the same for all), ``n_images``.
    """
    out = []
    done = scores[scores["status"].eq("ok")]
    for key, part in done.groupby(list(ROW_KEY), sort=True):
        tokens = part.groupby("image_id", sort=True)["visual_tokens"].mean()
        rho, p_value = spearman(tokens, objects.reindex(tokens.index))
        figures = {"tokens_min": tokens.min(), "tokens_max": tokens.max()}
        correlation = {"spearman_rho": rho, "p_value": p_value, "n_images": len(tokens)}
        out.append({**dict(zip(ROW_KEY, key, strict=True)), **figures, **correlation})
    columns = [*ROW_KEY, "tokens_min", "tokens_max", "spearman_rho", "p_value", "n_images"]
    return order_rows(pd.DataFrame(out, columns=columns), context)


def expressions_with(scores: pd.DataFrame, expressions: pd.DataFrame, column: str) -> pd.DataFrame:
    """Score rows with one more column of the prepared expressions.

    Raises:
        ValueError: the prepared table lacks an expression that was scored.
    """
    key = list(EXPRESSION_KEY)
    rows = scores.merge(expressions[[*key, column]], on=key, how="left", validate="many_to_one")
    if rows[column].isna().any():
        raise ValueError(
            f"expressions.parquet has no {column} for an expression that was scored; prepare it again"
        )
    return rows
