"""Uncertainty of scores: expressions share photographs, so photographs are what is resampled.

An interval over expressions as if they were independent is too narrow (7.2 expressions an image in
RefCOCO val; Miller, "Adding Error Bars to Evals", arXiv 2411.00640). gIoU and cIoU are both ratios of
sums over images (``sum IoU / sum n`` and ``sum I / sum U``), so one bootstrap serves both: images are
drawn with replacement, the ratio is taken anew, percentiles are the interval. Generators are seeded
from names, and projectors scored on the same images see the same draws.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import stats

from harness.draws import generator_from_names
from harness.scoring.metrics import EXPRESSION_KEY, expression_iou

__all__ = [
    "Difference",
    "Interval",
    "Resampler",
    "image_sums",
    "paired_difference",
    "spearman",
]

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """A value with its interval; bounds are NaN where one image leaves nothing to resample."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Difference:
    """A difference between two runs on the same expressions, its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p_value: float


def image_sums(
    scores: pd.DataFrame, images: Sequence[Hashable], columns: Sequence[str] = ("seed",)
) -> dict[str, tuple[Floats, Floats]]:
    """Numerators and denominators per image of gIoU and cIoU.

    Args:
        scores: rows with the score columns.
        images: the ``image_id`` of each of the ``C`` rows of the result; must cover ``scores``.
        columns: what makes a column of the result: one for each seed by default, one for each split
            and seed for an average over splits.

    Returns:
        ``{"giou": (num, den), "ciou": (num, den)}``, each array ``[C, S]``.
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
        "giou": (total(expression_iou(scores)), total(np.ones(len(scores)))),
        "ciou": (total(scores["intersection"]), total(scores["union"])),
    }


def _mean_ratio(numerator: Floats, denominator: Floats) -> Floats:
    """Mean over the last axis of ``numerator / denominator``; an empty union counts 1, as for IoU."""
    ratio = np.divide(numerator, denominator, out=np.ones_like(denominator), where=denominator > 0)
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
        level: float = 0.95,
    ):
        """Draw.

        Args:
            images: distinct images, in a fixed order.
            names: what seeds the generator.
            strata: a label an image; each stratum is resampled to its own size, so that no split of
                an average over splits is ever empty.
            resamples: ``B``.
            level: coverage of the intervals.
        """
        if len(set(images)) != len(images) or not len(images):
            raise ValueError("the images to resample must be distinct and at least one")
        self.images = list(images)
        self.level = level
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

    def distribution(self, numerator: Floats, denominator: Floats) -> Floats:
        """``[B]``: the mean over columns of ``sum numerator / sum denominator`` in every resample.

        Args:
            numerator: ``[C, S]``.
            denominator: ``[C, S]``.
        """
        return _mean_ratio(self.weights @ numerator, self.weights @ denominator)

    def interval(self, numerator: Floats, denominator: Floats) -> Interval:
        """The mean ratio with its percentile interval; arrays ``[C, S]``."""
        value = float(_mean_ratio(numerator.sum(0), denominator.sum(0)))
        if self.strata_sizes.max() < 2:
            return Interval(value, float("nan"), float("nan"))
        low, high = self._bounds(self.distribution(numerator, denominator))
        return Interval(value, low, high)

    def difference(self, a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> Difference:
        """``a - b`` of two mean ratios over the same images, resampled together.

        The p-value is the two-sided share of resamples on the other side of zero (counting the
        sample itself, so it is never 0).
        """
        value = float(_mean_ratio(a[0].sum(0), a[1].sum(0)) - _mean_ratio(b[0].sum(0), b[1].sum(0)))
        if self.strata_sizes.max() < 2:
            return Difference(value, float("nan"), float("nan"), float("nan"))
        draws = self.distribution(*a) - self.distribution(*b)
        low, high = self._bounds(draws)
        tail = min((draws <= 0).sum(), (draws >= 0).sum())
        return Difference(value, low, high, min(1.0, 2 * (tail + 1) / (len(draws) + 1)))

    def _bounds(self, draws: Floats) -> tuple[float, float]:
        edge = (1 - self.level) / 2
        low, high = np.quantile(draws, [edge, 1 - edge])
        return float(low), float(high)


def paired_difference(
    a: pd.DataFrame,
    b: pd.DataFrame,
    metric: str = "giou",
    *,
    resamples: int = 2000,
    level: float = 0.95,
    names: Sequence[object] = ("paired",),
) -> Difference:
    """How far run ``a`` lies above run ``b`` on the same expressions of one split.

    Args:
        a: score rows of one row of the comparison (any number of seeds).
        b: score rows of another.
        metric: ``giou`` or ``ciou``.
        resamples: bootstrap resamples over images.
        level: coverage of the interval.
        names: what seeds the generator.

    Raises:
        ValueError: the two do not score the same expressions.
    """
    key = list(EXPRESSION_KEY)
    ours, theirs = (f[key].drop_duplicates().sort_values(key, ignore_index=True) for f in (a, b))
    if not ours.equals(theirs):
        raise ValueError("a paired comparison needs the same expressions in both runs; score both again")
    images = sorted(set(a["image_id"]))
    resampler = Resampler(images, names=names, resamples=resamples, level=level)
    return resampler.difference(image_sums(a, images)[metric], image_sums(b, images)[metric])


def spearman(x: ArrayLike, y: ArrayLike) -> tuple[float, float]:
    """Spearman's rank correlation and its two-sided p-value; NaN where either side is constant."""
    x, y = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    if len(x) < 3 or np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan"), float("nan")
    result = stats.spearmanr(x, y)
    return float(result.statistic), float(result.pvalue)
