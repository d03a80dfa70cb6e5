import numpy as np
import pytest
import torch
from segment_anything.utils.amg import batched_mask_to_box

from svp.superpixels.presets import PRESETS
from svp.superpixels.selection import (
    mask_boxes,
    non_maximum_suppression,
    passes_quality,
    remove_small_regions,
    rock_sand_water,
    stability_score,
)

SUB_PART, PART, WHOLE = 0, 1, 2


def blocks(*slices, size=(20, 20)):
    masks = torch.zeros(len(slices), *size, dtype=torch.bool)
    for mask, (rows, columns) in zip(masks, slices, strict=True):
        mask[rows, columns] = True
    return masks


def test_parts_of_a_whole_go_and_parts_elsewhere_stay():
    masks = blocks(
        (slice(0, 10), slice(0, 10)),  # whole
        (slice(2, 6), slice(2, 6)),  # part inside it
        (slice(12, 20), slice(12, 20)),  # part elsewhere
        (slice(13, 15), slice(13, 15)),  # sub-part of that part
        (slice(0, 5), slice(12, 20)),  # sub-part that nothing covers
    )
    levels = torch.tensor([WHOLE, PART, PART, SUB_PART, SUB_PART])
    assert rock_sand_water(masks, levels, 0.3).tolist() == [0, 2, 4]


@pytest.mark.parametrize(("inside", "kept"), [(2, True), (3, False), (4, False)])
def test_the_threshold_itself_is_out(inside, kept):
    # a part of 10 pixels, `inside` of them in the whole: recall 0.2, 0.3, 0.4 against 0.3
    masks = blocks((slice(0, 10), slice(0, 10)), (slice(0, 1), slice(10 - inside, 20 - inside)))
    assert (1 in rock_sand_water(masks, torch.tensor([WHOLE, PART]), 0.3)) is kept


def test_recall_is_against_single_masks_not_their_union():
    # a quarter in each of two wholes: half of it is covered, no single mask covers 0.3
    masks = blocks((slice(0, 20), slice(0, 5)), (slice(0, 20), slice(15, 20)), (slice(0, 2), slice(0, 20)))
    assert rock_sand_water(masks, torch.tensor([WHOLE, WHOLE, PART]), 0.3).tolist() == [0, 1, 2]


def test_the_next_level_starts_where_there_is_no_whole():
    masks = blocks((slice(0, 8), slice(0, 8)), (slice(0, 8), slice(0, 8)), (slice(1, 3), slice(1, 3)))
    # equal parts are not compared with each other; the sub-part inside them goes
    assert rock_sand_water(masks, torch.tensor([PART, PART, SUB_PART]), 0.3).tolist() == [0, 1]


def test_only_sub_parts_or_nothing_at_all():
    masks = blocks((slice(0, 8), slice(0, 8)), (slice(1, 3), slice(1, 3)))
    assert rock_sand_water(masks, torch.tensor([SUB_PART, SUB_PART]), 0.3).tolist() == [0, 1]
    assert rock_sand_water(masks[:0], torch.zeros(0), 0.3).tolist() == []


@pytest.mark.parametrize("seed", range(5))
def test_filter_against_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    masks = np.zeros((40, 24, 30), bool)
    for mask in masks:
        y, x, h, w = rng.integers(0, 20), rng.integers(0, 25), rng.integers(2, 14), rng.integers(2, 14)
        mask[y : y + h, x : x + w] = True
    levels = rng.integers(0, 3, 40)
    kept = []
    for level in (WHOLE, PART, SUB_PART):
        candidates = [i for i in range(40) if levels[i] == level]
        rocks = list(kept)
        for i in candidates:
            recalls = [(masks[i] & masks[r]).sum() / masks[i].sum() for r in rocks]
            if not rocks or max(recalls) < 0.3:
                kept.append(i)
    assert rock_sand_water(torch.from_numpy(masks), torch.from_numpy(levels), 0.3).tolist() == kept
    assert 3 < len(kept) < 40


def test_whole_masks_pass_the_gate_a_tenth_lower():
    ious = torch.tensor([0.80, 0.80, 0.80, 0.87, 0.75])
    levels = torch.tensor([SUB_PART, PART, WHOLE, SUB_PART, WHOLE])
    passed = passes_quality(ious, levels, 0.86, (0.0, 0.0, 0.1))
    assert passed.tolist() == [False, False, True, True, False]


def test_stability_is_the_iou_of_two_cuts():
    logits = torch.tensor([[[2.0, 0.5, -0.5, -2.0]], [[-3.0, -3.0, -3.0, -3.0]], [[5.0, 5.0, -5.0, -5.0]]])
    score = stability_score(logits, 1.0)
    assert score[0].item() == pytest.approx(1 / 3)
    assert torch.isnan(score[1]) and not bool(score[1] >= 0.0)
    assert score[2].item() == 1.0


def test_boxes_equal_sams():
    masks = torch.rand(12, 9, 14, generator=torch.Generator().manual_seed(0)) > 0.93
    masks[3] = False
    assert torch.equal(mask_boxes(masks), batched_mask_to_box(masks).float())


def test_the_whole_level_bonus_wins_the_suppression():
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 10.5], [30, 30, 40, 40]])
    ious = torch.tensor([0.95, 0.80, 0.5])
    assert non_maximum_suppression(boxes, ious, 0.7).tolist() == [0, 2]
    with_bonus = ious + torch.tensor([0.0, 1.0, 0.0])
    assert non_maximum_suppression(boxes, with_bonus, 0.7).tolist() == [1, 2]


def parse(text):
    return np.array([[c == "#" for c in line] for line in text.split()])


@pytest.mark.parametrize(
    ("before", "after", "changed"),
    [
        # a hole of one pixel is filled, one of four is not smaller than four
        ("##### #.### ##### ##### #####", "##### ##### ##### ##### #####", True),
        ("##### #..## #..## ##### #####", "##### #..## #..## ##### #####", False),
        # an island goes; one that touches at a corner belongs to the rest
        ("##... ##..# ##... ##... ##...", "##... ##... ##... ##... ##...", True),
        ("##... ##... ##... ..#.. .....", "##... ##... ##... ..#.. .....", False),
        # if all islands are small, the largest stays
        ("#.... ..... ...## ..... #....", "..... ..... ...## ..... .....", True),
        # background cut off in a corner is a hole to SAM too
        ("###.# ####. ##### ##### #####", "##### ##### ##### ##### #####", True),
    ],
)
def test_small_regions(before, after, changed):
    result, was_changed = remove_small_regions(parse(before), 4)
    assert np.array_equal(result, parse(after))
    assert was_changed is changed


def test_a_lone_small_mask_stays_but_ranks_as_changed():
    mask = parse("..... ..#.. .....")
    result, changed = remove_small_regions(mask, 4)
    assert np.array_equal(result, mask) and changed


# read off the published preset file of FMA-WSSS, in the order: points a side, predicted IoU, stability,
# crop layers, points downscale, minimal region, gate offsets, suppression offsets, stability bias, filter
ZERO = (0.0, 0.0, 0.0)
TABLE = {
    "official_default": (32, 0.88, 0.95, 0, 1, 0, ZERO, ZERO, ZERO, None),
    "official_heavy": (32, 0.86, 0.92, 1, 2, 100, ZERO, ZERO, ZERO, None),
    "ssa_light": (16, 0.86, 0.92, 0, 2, 100, ZERO, ZERO, ZERO, None),
    "ssa_light_8p": (8, 0.86, 0.92, 0, 2, 100, ZERO, ZERO, ZERO, None),
    "ssa_default": (32, 0.86, 0.92, 0, 2, 100, ZERO, ZERO, ZERO, None),
    "ssa_heavy": (64, 0.86, 0.92, 1, 2, 100, ZERO, ZERO, ZERO, None),
    "l2_only": (32, 0.86, 0.92, 1, 2, 100, (-1, -1, 0), ZERO, ZERO, None),
    "l2_only_s1": (32, 0.86, 0.92, 1, 2, 100, (-1, -1, 0.1), ZERO, ZERO, None),
    "l2_only_s1_t4": (32, 0.86, 0.92, 1, 2, 100, (-1, -1, 0.1), ZERO, (0, 0, 0.04), None),
    "l2_nmsf": (32, 0.86, 0.92, 1, 2, 100, ZERO, (0, 0, 1), ZERO, None),
    "l2_nmsf_s1": (32, 0.86, 0.92, 1, 2, 100, (0, 0, 0.1), (0, 0, 1), ZERO, None),
    "l2_nmsf_s1_c0": (32, 0.86, 0.92, 0, 2, 100, (0, 0, 0.1), (0, 0, 1), ZERO, None),
    "l2_nmsf_s1_rsw3": (32, 0.86, 0.92, 1, 2, 100, (0, 0, 0.1), (0, 0, 1), ZERO, 0.3),
}


def test_presets_equal_the_published_table():
    for name, row in TABLE.items():
        preset = PRESETS[name]
        assert (
            preset.points_per_side,
            preset.pred_iou_thresh,
            preset.stability_score_thresh,
            preset.crop_n_layers,
            preset.crop_n_points_downscale_factor,
            preset.min_mask_region_area,
            preset.score_thresh_offset,
            preset.score_nms_offset,
            preset.stability_score_bias,
            preset.rock_sand_water_thresh,
        ) == row, name
        assert (preset.box_nms_thresh, preset.crop_nms_thresh, preset.stability_score_offset) == (
            0.7,
            0.7,
            1.0,
        )
        assert preset.crop_overlap_ratio == 512 / 1500
    assert set(PRESETS) - set(TABLE) == {"svp"}
    assert PRESETS["svp"] == PRESETS["l2_nmsf_s1_rsw3"].but(crop_n_layers=0)
