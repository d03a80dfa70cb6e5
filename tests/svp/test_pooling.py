import numpy as np
import pytest
import torch
from svp_inputs import GRID, rectangles, superpixels_of, take
from torch.nn import functional as F

from harness.projector import ImageFeatures
from svp.pooling import binary_cells, order_key, pad, pool, smallest_owner, sort_by, unpad, with_background
from svp.superpixels.grid import Grid


def test_padding_and_back():
    lengths = torch.tensor([2, 3, 1])
    packed = torch.arange(12.0).reshape(6, 2)
    padded = pad(packed, lengths)
    assert padded.shape == (3, 3, 2)
    assert padded[1].tolist() == packed[2:5].tolist() and padded[2, 1:].abs().sum() == 0
    assert torch.equal(unpad(padded, lengths), packed)


def test_up_is_the_mean_of_the_up_sampled_map_under_the_mask():
    generator = torch.Generator().manual_seed(0)
    masks = rectangles(5, generator)
    patches = torch.randn(1, 30, 8, generator=generator)
    features = ImageFeatures(patches, GRID, superpixels=superpixels_of(masks))
    up = F.interpolate(features.as_map(), masks.shape[1:], mode="bilinear", align_corners=False)[0]
    expected = torch.stack([up[:, mask].mean(dim=1) for mask in masks])
    torch.testing.assert_close(pool(patches, features.superpixels, "up"), expected, atol=2e-3, rtol=0)


def test_down_averages_cells_half_covered_and_falls_back_where_a_mask_vanishes(batch):
    pooled, start = pool(batch.patches, batch.superpixels, "down"), 0
    vanished = 0
    for image, length in enumerate(batch.superpixels.lengths.tolist()):
        for row in range(start, start + length):
            cells = [c for c in range(30) if batch.superpixels.occupancy[row, c] >= 0.5]
            if cells:
                expected = sum(batch.patches[image, c] for c in cells) / len(cells)
            else:
                vanished += 1
                expected = (batch.superpixels.weights[row][:, None] * batch.patches[image]).sum(dim=0)
            torch.testing.assert_close(pooled[row], expected, atol=1e-5, rtol=1e-5)
        start += length
    assert vanished >= 3


def test_cells_inside_a_mask():
    occupancy = torch.tensor([[1.0, 0.5, 0.49, 0.0], [0.2, 0.0, 0.49, 0.0]])
    assert binary_cells(occupancy).tolist() == [[True, True, False, False], [True, False, True, False]]


def test_the_smallest_mask_owns_a_patch(batch):
    sp, owner, start = batch.superpixels, smallest_owner(batch.superpixels), 0
    inside, uncovered = binary_cells(sp.occupancy), 0
    for image, length in enumerate(sp.lengths.tolist()):
        for cell in range(30):
            rows = [r for r in range(start, start + length) if inside[r, cell]]
            expected = min(rows, key=lambda r: float(sp.areas[r])) if rows else -1
            assert owner[image, cell] == expected
            uncovered += not rows
        start += length
    assert uncovered > 10


def test_equal_areas_are_told_apart_by_geometry():
    """A grid whose rows halve patches, and three masks of one area in one box that share cells."""
    made = Grid(Grid.Config(rows=4, columns=5)).generate(np.zeros((48, 40, 3), np.uint8))
    alike = torch.zeros(3, 48, 40, dtype=torch.bool)
    alike[:, 4:36, 4:36] = True
    for mask, hole in zip(alike, (8, 18, 28), strict=True):
        mask[hole : hole + 3, 10:20] = False
    sp = superpixels_of(torch.cat([torch.from_numpy(made.masks), alike]))
    assert len(sp.areas.unique()) == 2
    owner, order = smallest_owner(sp), sort_by(order_key(sp, GRID, "area"), sp.lengths)
    # rows of 12 pixels on cells of 8: half of the second cell down belongs to each of two rectangles
    assert owner.reshape(6, 5)[1].tolist() == [0, 1, 2, 3, 4]
    assert sorted(order[:3].tolist()) == [20, 21, 22] and order[3:].tolist() == list(range(20))
    for seed in range(5):
        permutation = torch.randperm(23, generator=torch.Generator().manual_seed(seed))
        shuffled = take(sp, permutation)
        assert torch.equal(permutation[smallest_owner(shuffled)], owner)
        again = sort_by(order_key(shuffled, GRID, "area"), sp.lengths)
        assert torch.equal(permutation[again], order)


@pytest.mark.parametrize("order", ["area", "raster", "random", "stored"])
def test_sorting_stays_within_each_image(batch, order):
    sp = batch.superpixels
    index = sort_by(order_key(sp, GRID, order, 3), sp.lengths)
    assert sorted(index.tolist()) == list(range(int(sp.lengths.sum())))
    assert torch.equal(sp.image_index[index], sp.image_index)


def test_orders_mean_what_they_say():
    masks = torch.zeros(3, 48, 40, dtype=torch.bool)
    masks[0, 40:44, 0:4] = masks[1, 0:8, 20:28] = masks[2, 1:30, 2:12] = True
    sp = superpixels_of(masks)
    assert sort_by(order_key(sp, GRID, "area"), sp.lengths).tolist() == [2, 1, 0]
    assert sort_by(order_key(sp, GRID, "raster"), sp.lengths).tolist() == [1, 2, 0]
    assert sort_by(order_key(sp, GRID, "stored"), sp.lengths).tolist() == [0, 1, 2]


def test_random_order_hangs_on_seed_and_geometry_alone():
    sp = superpixels_of(rectangles(40, torch.Generator().manual_seed(5)))
    orders = [sort_by(order_key(sp, GRID, "random", seed), sp.lengths) for seed in range(5)]
    assert len({tuple(o.tolist()) for o in orders}) == 5
    permutation = torch.randperm(40, generator=torch.Generator().manual_seed(1))
    shuffled = take(sp, permutation)
    assert torch.equal(permutation[sort_by(order_key(shuffled, GRID, "random", 2), sp.lengths)], orders[2])
    # no trend: the rank of a superpixel says nothing about its area
    keys = order_key(superpixels_of(rectangles(400, torch.Generator().manual_seed(6))), GRID, "random", 0)
    areas = superpixels_of(rectangles(400, torch.Generator().manual_seed(6))).areas.double()
    assert abs(torch.corrcoef(torch.stack([keys, areas]))[0, 1]) < 0.15


def test_background_is_what_no_mask_covers():
    masks = torch.zeros(2, 48, 40, dtype=torch.bool)
    masks[0, :24] = masks[1, 24:, :16] = True  # cells are 8 x 8: the right part of the lower half is left
    sp, added = with_background(superpixels_of(masks), GRID)
    assert sp.lengths.tolist() == [3] and added.tolist() == [False, False, True]
    expected = (~masks.any(dim=0)).float().reshape(6, 8, 5, 8).mean(dim=(1, 3)).flatten()
    torch.testing.assert_close(sp.occupancy[2], expected, atol=3e-3, rtol=0)
    assert sp.boxes[2].tolist() == pytest.approx([0.4, 0.5, 1, 1])
    assert sp.areas[2].item() == pytest.approx(0.3, abs=3e-3) and sp.weights[2].sum().item() == pytest.approx(
        1
    )


def test_background_counts_what_several_masks_cover_once():
    masks = torch.zeros(4, 48, 40, dtype=torch.bool)
    masks[0, :, :19] = masks[1, 10:30, 5:19] = True  # nested; 5/8 of the third column of cells is left
    masks[2, 5:21, 15:33] = masks[3, 5:21, 15:33] = True  # twice the same, over the edge of the first
    sp, added = with_background(superpixels_of(masks), GRID)
    assert added.tolist() == [False] * 4 + [True]
    expected = (~masks.any(dim=0)).float().reshape(6, 8, 5, 8).mean(dim=(1, 3)).flatten()
    torch.testing.assert_close(sp.occupancy[4], expected, atol=0.5 / 255 + 1e-6, rtol=0)
    cells = expected.reshape(6, 5) > 0.5
    assert cells[3, 2]  # 40 of 64 pixels are left; the sum of the nested masks would leave 22
    ys, xs = torch.nonzero(cells, as_tuple=True)
    box = [xs.min() / 5, ys.min() / 6, (xs.max() + 1) / 5, (ys.max() + 1) / 6]
    assert sp.boxes[4].tolist() == pytest.approx([float(v) for v in box])
    assert sp.areas[4].item() == pytest.approx((~masks.any(dim=0)).float().mean().item(), abs=1 / 255)


def test_background_where_none_overlap_is_one_less_the_sum_to_the_last_bit():
    masks = torch.zeros(3, 48, 40, dtype=torch.bool)
    masks[0, :11, :23] = masks[1, 11:29, 3:37] = masks[2, :11, 23:30] = True  # touching, within cells
    sp = superpixels_of(masks)
    longer, added = with_background(sp, GRID)
    assert torch.equal(longer.occupancy[added][0], (1 - sp.occupancy.sum(dim=0)).clamp(min=0))


def test_no_background_where_all_is_covered():
    sp = superpixels_of(torch.ones(1, 48, 40, dtype=torch.bool))
    longer, added = with_background(sp, GRID)
    assert longer.lengths.tolist() == [1] and not added.any()


def test_background_in_a_batch_equals_one_by_one(images, batch):
    together, added = with_background(batch.superpixels, GRID)
    parts = [with_background(i.superpixels, GRID) for i in images]
    assert together.lengths.tolist() == [int(p.lengths) for p, _ in parts]
    assert torch.equal(together.occupancy, torch.cat([p.occupancy for p, _ in parts]))
    assert torch.equal(added, torch.cat([a for _, a in parts]))
