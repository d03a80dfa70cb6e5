"""Paired differences, strata and token counts of the tables, through the function that writes them."""

import numpy as np
import pandas as pd
import pytest
from made_up_tables import score_rows
from scipy import stats

from harness.reporting.aggregate import differences_to, score_tables
from harness.reporting.context import ReportContext

ONE, TWO = ("one", "base", "auto"), ("two", "base", "auto")


def tables(rows, resamples):
    return score_tables(rows, ReportContext(study="golden", data="synthetic", resamples=resamples))


def paired(one, two, resamples):
    """``differences.csv`` of two rows with these IoUs (in percent), an expression a photograph."""
    rows = [
        (name, 0, "val", image, image, int(iou), 100, 5)
        for name, ious in (("one", one), ("two", two))
        for image, iou in enumerate(ious)
    ]
    return tables(score_rows(rows), resamples)[2]


def test_a_gap_that_all_photographs_share_is_certain():
    two = np.random.default_rng(0).integers(10, 80, 40)
    found = paired(two + 10, two, 99)
    gap, low, high, p = differences_to(found, TWO, place=("toy", "val"))[ONE]
    assert (gap, low, high) == pytest.approx((0.1, 0.1, 0.1))
    assert p == pytest.approx(2 * (0 + 1) / (99 + 1))
    mirrored = differences_to(found, ONE, place=("toy", "val"))[TWO]
    assert mirrored == pytest.approx((-0.1, -0.1, -0.1, p))


def test_a_noisy_gap_has_scipys_paired_interval():
    rng = np.random.default_rng(1)
    level = rng.integers(20, 70, 60)
    one, two = level + rng.integers(-5, 15, 60), level + rng.integers(-5, 6, 60)
    gap, low, high, _ = differences_to(paired(one, two, 8000), TWO, place=("toy", "val"))[ONE]
    theirs = stats.bootstrap(
        ((one - two) / 100,), np.mean, n_resamples=8000, method="percentile", rng=np.random.default_rng(7)
    ).confidence_interval
    width = theirs.high - theirs.low
    assert gap == pytest.approx((one - two).mean() / 100)
    assert abs(low - theirs.low) < 0.06 * width and abs(high - theirs.high) < 0.06 * width


def test_equal_rows_are_not_told_apart():
    same = np.random.default_rng(2).integers(10, 90, 20)
    assert differences_to(paired(same, same, 50), TWO)[ONE] == (0, 0, 0, 1)


def test_rows_on_other_scenes_of_the_same_numbers_are_not_paired():
    """Synthetic scenes of another look or seed number their images alike."""
    same = score_rows([("one", 0, "val", k, k, 50, 100, 5) for k in range(9)])
    other = score_rows([("two", 0, "val", k, k, 40, 90, 5) for k in range(9)])  # targets of other areas
    assert tables(pd.concat([same, other]), 20)[2].empty
    assert len(tables(pd.concat([same, other.assign(gt_area=100)]), 20)[2]) == 2  # val, and all splits


def test_a_mean_over_splits_is_resampled_split_by_split():
    ious = {1: ("val", 20), 2: ("val", 20), 3: ("testA", 80), 4: ("testA", 80)}
    rows = [("one", 0, split, image, image, iou, 100, 5) for image, (split, iou) in ious.items()]
    overall = tables(score_rows(rows), 200)[1].iloc[0]
    # whichever photographs are drawn, half of the mean is val's; drawn over both, it would swing
    assert overall[["giou", "giou_low", "giou_high"]].tolist() == pytest.approx([0.5, 0.5, 0.5])


def test_tokens_are_counted_over_what_was_scored():
    rows = score_rows([("one", 0, "val", k % 7, k, 50, 100, k) for k in range(101)])
    failed = score_rows([("one", 0, "val", 7, 200, 0, 100, 10_000)]).assign(status="failed: no image")
    for frame in (rows, pd.concat([rows, failed])):
        for table in tables(frame, 20)[:2]:
            assert table.iloc[0][["tokens_mean", "tokens_p5", "tokens_p95"]].tolist() == [50, 5, 95]
