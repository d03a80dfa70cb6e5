"""The bootstrap against plain loops, scipy and theory."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from harness.draws import generator_from_names
from harness.scoring.statistics import Resampler, difference_interval, image_sums, spearman


def make_scores(rng, images=60, per_image=4, seed=0, projector="alpha", shift=0.0, image_effect=0.25):
    rows = []
    for image in range(images):
        level = np.clip(0.5 + shift + image_effect * rng.standard_normal(), 0.02, 0.98)
        for k in range(per_image):
            area = int(rng.integers(50, 400))
            iou = float(np.clip(level + 0.05 * rng.standard_normal(), 0, 1))
            rows.append((image, image, image * 100 + k, int(iou * area), area))
    frame = pd.DataFrame(rows, columns=["image_id", "ref_id", "sent_id", "intersection", "union"])
    frame["pred_area"] = frame["union"] - frame["image_id"] % 3  # of which the intersection is a part or all
    frame["pred_area"] = frame[["pred_area", "intersection"]].max(axis=1)
    return frame.assign(dataset="toy", split="val", projector=projector, seed=seed, status="ok")


def test_distribution_equals_a_plain_loop_over_the_same_draws():
    scores = pd.concat([make_scores(np.random.default_rng(0), 12, seed=s) for s in (0, 1)])
    images = sorted(set(scores["image_id"]))
    resampler = Resampler(images, names=["x"], resamples=40)
    sums = image_sums(scores, images)
    parts = {
        "giou": lambda row: (row.intersection / row.union, 1),
        "ciou": lambda row: (row.intersection, row.union),
        "fp_share": lambda row: (row.pred_area - row.intersection, row.pred_area),
    }
    for metric, of in parts.items():
        got = resampler.distribution(*sums[metric])
        for b in range(40):
            values = []
            for seed in (0, 1):
                top = bottom = 0.0
                for row in scores[scores["seed"] == seed].itertuples():
                    times = resampler.weights[b, images.index(row.image_id)]
                    top += times * of(row)[0]
                    bottom += times * of(row)[1]
                values.append(top / bottom)
            assert got[b] == pytest.approx(sum(values) / 2, abs=1e-12)


@pytest.mark.parametrize("metric", ["giou", "ciou"])
def test_interval_agrees_with_scipy(metric):
    scores = make_scores(np.random.default_rng(1))
    images = sorted(set(scores["image_id"]))
    num, den, _ = image_sums(scores, images)[metric]
    ours = Resampler(images, names=["scipy"], resamples=8000).interval(num, den)
    theirs = stats.bootstrap(
        (num[:, 0], den[:, 0]),
        lambda n, d, axis: n.sum(axis=axis) / d.sum(axis=axis),
        paired=True,
        vectorized=True,
        n_resamples=8000,
        method="percentile",
        rng=np.random.default_rng(7),
    ).confidence_interval
    width = theirs.high - theirs.low
    assert abs(ours.low - theirs.low) < 0.06 * width
    assert abs(ours.high - theirs.high) < 0.06 * width


def test_images_are_the_unit_not_expressions():
    # Each image's expressions all share one IoU: the interval must not shrink as copies are added.
    rng = np.random.default_rng(2)
    base = make_scores(rng, per_image=1)
    copies = pd.concat([base.assign(sent_id=base["sent_id"] + k) for k in range(8)])
    images = sorted(set(base["image_id"]))
    one, eight = (
        Resampler(images, names=["n"]).interval(*image_sums(f, images)["giou"]) for f in (base, copies)
    )
    assert (eight.low, eight.high) == pytest.approx((one.low, one.high), abs=1e-12)


def test_coverage_is_near_its_level():
    covered = 0
    for k in range(150):
        scores = make_scores(np.random.default_rng(1000 + k), images=60, per_image=3, image_effect=0.15)
        images = sorted(set(scores["image_id"]))
        interval = Resampler(images, names=[k], resamples=400).interval(*image_sums(scores, images)["giou"])
        covered += interval.low <= 0.4985 <= interval.high  # int() takes about half a pixel of 225
    assert 0.88 <= covered / 150 <= 0.99


def test_same_names_same_interval_other_names_other():
    scores = make_scores(np.random.default_rng(3))
    images = sorted(set(scores["image_id"]))
    sums = image_sums(scores, images)["giou"]
    a, b, c = (Resampler(images, names=n, resamples=200).interval(*sums) for n in (["a"], ["a"], ["b"]))
    assert a == b != c
    assert generator_from_names("a", "b").integers(1 << 30) != generator_from_names("ab").integers(1 << 30)


def test_strata_keep_their_sizes():
    resampler = Resampler(range(10), names=["s"], strata=["a"] * 3 + ["b"] * 7, resamples=50)
    assert (resampler.weights[:, :3].sum(1) == 3).all() and (resampler.weights[:, 3:].sum(1) == 7).all()


def test_one_image_has_no_interval():
    scores = make_scores(np.random.default_rng(4), images=1)
    interval = Resampler([0], names=["one"]).interval(*image_sums(scores, [0])["giou"])
    assert np.isnan(interval.low) and np.isnan(interval.high) and 0 < interval.value < 1


def test_the_p_value_counts_resamples_beyond_zero_and_the_sample_itself():
    draws = np.r_[np.full(3, -1.0), np.zeros(2), np.full(94, 1.0)]
    low, high, p = difference_interval(draws)
    assert p == pytest.approx(2 * (3 + 2 + 1) / 100)
    assert difference_interval(-draws)[2] == p and difference_interval(np.zeros(99))[2] == 1
    assert (low, high) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])))
    assert np.isnan(difference_interval(np.r_[draws, np.nan])).all()


def test_spearman_known_answers():
    rho, p = spearman([1, 2, 3, 4, 5], [5, 6, 7, 8, 7])
    assert rho == pytest.approx(0.8207826816681233)  # the worked example of scipy's own manual
    assert p == pytest.approx(0.08858700531354381)
    assert np.isnan(spearman([1, 1, 1], [1, 2, 3])[0])
    assert spearman([1, 2, 3, 4], [10, 100, 1000, 10000])[0] == pytest.approx(1)
