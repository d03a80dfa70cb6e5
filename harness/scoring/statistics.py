"""Uncertainty of scores: expressions share photographs, so photographs are what is resampled.

An interval over expressions as if they were independent is too narrow (7.2 expressions an image in
RefCOCO val; Miller, "Adding Error Bars to Evals", arXiv 2411.00640). gIoU and cIoU are both ratios of
sums over images (``sum IoU / sum n`` and ``sum I / sum U``), and so is the share of predicted pixels
that are false positives, so one bootstrap serves all: images are drawn with replacement, the ratio is
taken anew, percentiles are the interval. Generators are seeded from names, and projectors scored on the
same images see the same draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.draws import generator_from_names
from harness.scoring.metrics import expression_iou

__all__ = [
    "Interval",
    "Resampler",
    "Sums",
    "difference_interval",
    "image_sums",
    "spearman",
]

Floats = NDArray[np.float64]

# 95 %
_EDGES = (0.025, 0.975)


@dataclass(frozen=True)
class Interval:
    """A value with its interval; bounds are NaN where one image leaves nothing to resample."""

    value: float
    low: float
    high: float


class Sums(NamedTuple):
    """A ratio's parts per image.

    Attributes:
        numerator: ``[C, S]``.
        denominator: ``[C, S]``.
        empty: the ratio where the denominators sum to zero.
    """

    numerator: Floats
    denominator: Floats
    empty: float = 1.0


def image_sums(
    scores: pd.DataFrame, images: Sequence[Hashable], columns: Sequence[str] = ("seed",)
) -> dict[str, Sums]:
    """Numerators and denominators per image of gIoU, cIoU and the share of false positives.

    Args:
        scores: rows with the score columns.
        images: the ``image_id`` of each of the ``C`` rows of the result; must cover ``scores``.
        columns: what makes a column of the result: one for each seed by default, one for each split
            and seed for an average over splits.

    Returns:
        By metric: ``giou`` and ``ciou``, 1 where a union is empty, as for IoU; and ``fp_share``, the
        share of the predicted pixels that lie outside the target, NaN where nothing was predicted.
    """
    row = pd.Index(list(images), dtype=object).get_indexer(pd.Index(scores["image_id"], dtype=object))
    if (row < 0).any():
        raise ValueError("scores hold an image that is not among the images to resample")
    column = scores.groupby(list(columns), sort=True).ngroup().to_numpy()
    shape = (len(images), int(column.max()) + 1)

    def total(values: ArrayLike) -> Floats:
        out = np.zeros(shape)
        np.add.at(out, (row, column), np.asarray(values, dtype=np.float64))
        return out

    return {
        "giou": Sums(total(expression_iou(scores)), total(np.ones(len(scores)))),
        "ciou": Sums(total(scores["intersection"]), total(scores["union"])),
        "fp_share": Sums(
            total(scores["pred_area"] - scores["intersection"]), total(scores["pred_area"]), empty=np.nan
        ),
    }


def _mean_ratio(numerator: Floats, denominator: Floats, empty: float = 1.0) -> Floats:
    """Mean over the last axis of ``numerator / denominator``, with ``empty`` for each zero denominator."""
    ratio = np.divide(numerator, denominator, out=np.full_like(denominator, empty), where=denominator > 0)
    return ratio.mean(axis=-1)


class Resampler:
    """Draws of ``C`` images with replacement, to be shared by all runs scored on them.

    Attributes:
        images: ``image_id`` of each column of ``weights``.
        weights: ``[B, C]`` how often each image stands in each resample.
    """

    def __init__(
        self,
        images: Sequence[Hashable],
        *,
        names: Sequence[object],
        strata: Sequence[Hashable] | None = None,
        resamples: int = 2000,
    ):
        """Draw.

        Args:
            images: distinct images, in a fixed order.
            names: what seeds the generator.
            strata: a label an image; each stratum is resampled to its own size, so that no split of
                an average over splits is ever empty.
            resamples: ``B``.
        """
        if len(set(images)) != len(images) or not len(images):
            raise ValueError("the images to resample must be distinct and at least one")
        self.images = list(images)
        generator = generator_from_names("bootstrap", *names)
        self.weights = np.zeros((resamples, len(images)), dtype=np.float64)
        label = pd.factorize(pd.Series([0] * len(images) if strata is None else list(strata)))[0]
        self.strata_sizes = np.bincount(label)
        for stratum in range(label.max() + 1):
            members = np.flatnonzero(label == stratum)
            size = len(members)
            drawn = generator.integers(0, size, size=(resamples, size))
            drawn += size * np.arange(resamples)[:, None]
            counts = np.bincount(drawn.ravel(), minlength=resamples * size).reshape(resamples, size)
            self.weights[:, members] = counts

    def distribution(self, numerator: Floats, denominator: Floats, empty: float = 1.0) -> Floats:
        """``[B]``: the mean over columns of ``sum numerator / sum denominator`` in every resample.

        Args:
            numerator: ``[C, S]``.
            denominator: ``[C, S]``.
            empty: the ratio where the denominators of a column sum to zero.
        """
        return _mean_ratio(self.weights @ numerator, self.weights @ denominator, empty)

    def interval(self, numerator: Floats, denominator: Floats, empty: float = 1.0) -> Interval:
        """The mean ratio with its 95 % percentile interval; arguments as of :meth:`distribution`."""
        value = float(_mean_ratio(numerator.sum(0), denominator.sum(0), empty))
        if self.strata_sizes.max() < 2:
            return Interval(value, float("nan"), float("nan"))
        low, high = np.quantile(self.distribution(numerator, denominator, empty), _EDGES)
        return Interval(value, float(low), float(high))


def difference_interval(draws: Floats) -> tuple[float, float, float]:
    """95 % interval and two-sided p-value of a difference from its resamples ``[B]``; NaN if one has none.

    The p-value is twice the share of resamples on the other side of zero, the sample itself counted
    among them, so that it is never 0.
    """
    if np.isnan(draws).any():
        return np.nan, np.nan, np.nan
    low, high = np.quantile(draws, _EDGES)
    tail = min((draws <= 0).sum(), (draws >= 0).sum())
    return float(low), float(high), min(1.0, 2 * (tail + 1) / (len(draws) + 1))


def spearman(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p-value; NaN where either side is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    result = stats.spearmanr(x, y)
    return float(result.statistic), float(result.pvalue)
