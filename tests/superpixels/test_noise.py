import numpy as np
import pytest
from photographs import OPEN, photograph

from svp.superpixels.sam import SamSuperpixels
from svp.superpixels.sam_noisy import NoisySam, merge_masks, split_masks


def tiles(rows=3, columns=4):
    row, column = np.arange(30) * rows // 30, np.arange(40) * columns // 40
    labels = row[:, None] * columns + column[None]
    return labels[None] == np.arange(rows * columns)[:, None, None]


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize(("share", "left"), [(0, 12), (0.25, 9), (0.5, 6), (1, 1)])
def test_merging_unites_as_many_as_asked_and_loses_no_pixel(share, left):
    merged = merge_masks(tiles(), share, rng())
    assert len(merged) == left
    assert (merged.sum(axis=0) == 1).all()


def test_the_nearest_is_merged():
    masks = np.zeros((3, 20, 20), bool)
    masks[0, 0:2, 0:2] = masks[1, 0:2, 3:5] = masks[2, 17:19, 17:19] = True
    # a near one drawn unites with the other; the far one drawn unites with the second, which is nearer
    allowed = [{(0, 1), (2,)}, {(0,), (1, 2)}]
    seen = []
    for seed in range(12):
        merged = merge_masks(masks, 1 / 3, rng(seed))
        seen.append({tuple(i for i in range(3) if (m & masks[i]).any()) for m in merged})
    assert all(outcome in allowed for outcome in seen)
    assert all(outcome in seen for outcome in allowed)


@pytest.mark.parametrize(("share", "count"), [(0, 12), (0.25, 15), (1, 24)])
def test_splitting_cuts_in_equal_halves_and_loses_no_pixel(share, count):
    split = split_masks(tiles(), share, rng())
    assert len(split) == count and (split.sum(axis=0) == 1).all()
    assert sorted({int(m.sum()) for m in split}) == (
        [100] if share == 0 else [50] if share == 1 else [50, 100]
    )


def test_the_cut_goes_across_the_longest_axis():
    masks = np.zeros((1, 10, 30), bool)
    masks[0, 4:6, 2:28] = True
    left, right = sorted(split_masks(masks, 1, rng()), key=lambda m: np.argwhere(m)[:, 1].mean())
    assert np.argwhere(left)[:, 1].max() <= np.argwhere(right)[:, 1].min()
    masks[:] = False
    masks[0, 3, 3] = True
    assert len(split_masks(masks, 1, rng())) == 1  # a single pixel cannot be cut


def test_noise_is_fixed_by_seed_and_image(sam):
    clean = SamSuperpixels(SamSuperpixels.Config(**OPEN), sam).generate(photograph())
    none = NoisySam(NoisySam.Config(**OPEN), sam).generate(photograph(), image_id=3)
    assert np.array_equal(none.masks, clean.masks)
    count = len(clean.masks)
    config = NoisySam.Config(**OPEN, merge=0.5, split=0.5)
    first, again, other = (NoisySam(config, sam).generate(photograph(), image_id=i) for i in (3, 3, 4))
    assert np.array_equal(first.masks, again.masks)
    assert not np.array_equal(first.masks[: len(other.masks)], other.masks[: len(first.masks)])
    left = count - round(0.5 * count)
    assert left <= len(first.masks) <= left + round(0.5 * left)
    assert np.array_equal(first.masks.any(axis=0), clean.masks.any(axis=0))
