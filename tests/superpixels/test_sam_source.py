import numpy as np
import pytest
import torch
from photographs import OPEN, by_content, photograph
from pydantic import ValidationError
from segment_anything import SamAutomaticMaskGenerator

from svp.superpixels.prompting import exact_candidates, official_candidates
from svp.superpixels.sam import SamSuperpixels


def official(sam, image, **changes):
    options = {k: v for k, v in (OPEN | changes).items() if k not in ("preset", "engine")}
    found = SamAutomaticMaskGenerator(sam, points_per_batch=16, **options).generate(image)
    return [record["segmentation"] for record in found], [record["predicted_iou"] for record in found]


@pytest.mark.parametrize("threshold", [-9.0, 0.1, 9.0])
def test_exact_candidates_equal_the_official_decoder(sam, threshold):
    generator = torch.Generator().manual_seed(1)
    embedding = torch.randn(1, 64, 12, 12, generator=generator)
    points = torch.rand(30, 2, generator=generator) * 96

    def gate(ious, levels):
        return ious + 0.02 * levels > threshold

    with torch.inference_mode():
        one = official_candidates(sam, embedding, points, gate)
        other = exact_candidates(sam, embedding, points, gate)
    assert torch.equal(one.levels, other.levels) and torch.equal(one.points, other.points)
    torch.testing.assert_close(one.predicted_iou, other.predicted_iou, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(one.logits, other.logits, atol=1e-5, rtol=1e-4)
    expected = {-9.0: len(one.levels) == 90, 0.1: 0 < len(one.levels) < 90, 9.0: len(one.levels) == 0}
    assert expected[threshold]


@pytest.mark.parametrize("engine", ["official", "exact"])
@pytest.mark.parametrize("size", [(96, 96), (60, 100)])
def test_same_masks_as_sams_own_generator(sam, engine, size):
    image = photograph(*size)
    made = SamSuperpixels(SamSuperpixels.Config(**OPEN, engine=engine), sam).generate(image)
    masks, ious = official(sam, image)
    assert len(masks) > 3
    assert by_content(made.masks) == by_content(masks)
    assert sorted(made.scores) == pytest.approx(sorted(ious), abs=1e-5)


def test_same_masks_as_sams_own_generator_with_crops(sam):
    image, crops = photograph(300, 260), {"crop_n_layers": 1, "points_per_side": 4, "crop_nms_thresh": 0.5}
    made = SamSuperpixels(SamSuperpixels.Config(**(OPEN | crops)), sam).generate(image)
    masks, _ = official(sam, image, **crops)
    assert len(masks) > 3
    assert by_content(made.masks) == by_content(masks)


def test_levels_say_which_of_the_three_outputs_a_mask_is(sam):
    image = photograph()
    only = {"pred_iou_thresh": 0.0, "score_thresh_offset": (-9.0, 0.0, -9.0)}
    made = SamSuperpixels(SamSuperpixels.Config(**(OPEN | only)), sam).generate(image)
    assert len(made.levels) and set(made.levels.tolist()) == {1}


def test_a_cached_embedding_changes_nothing(sam):
    image, source = photograph(), SamSuperpixels(SamSuperpixels.Config(**OPEN), sam)
    with torch.inference_mode():
        embedding = source.encode(image)[0].numpy()
    fresh, cached = source.generate(image), source.generate(image, sam_embedding=embedding)
    assert np.array_equal(fresh.masks, cached.masks)
    other = source.generate(image, sam_embedding=np.zeros_like(embedding))
    assert by_content(other.masks) != by_content(fresh.masks)  # it is read at all


def test_batches_of_prompts_do_not_change_the_outcome(sam):
    image = photograph()
    some = SamSuperpixels(SamSuperpixels.Config(**OPEN, points_per_batch=7), sam).generate(image)
    whole = SamSuperpixels(SamSuperpixels.Config(**OPEN), sam).generate(image)
    assert by_content(some.masks) == by_content(whole.masks)


def test_a_gate_that_nothing_passes_gives_no_mask(sam):
    made = SamSuperpixels(SamSuperpixels.Config(preset="svp", points_per_side=4, pred_iou_thresh=99), sam)
    assert made.generate(photograph()).masks.shape == (0, 96, 96)


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (1, 1)])
def test_one_pixel_images(sam, size):
    source = SamSuperpixels(SamSuperpixels.Config(**OPEN, min_mask_region_area=4), sam)
    masks = source.generate(photograph(*size)).masks
    assert masks.shape[1:] == size and masks.any(axis=(1, 2)).all()


def test_the_clean_up_and_the_filter_are_applied(sam):
    image = photograph()
    options = OPEN | {"box_nms_thresh": 0.99, "crop_nms_thresh": 0.99}
    plain = SamSuperpixels(SamSuperpixels.Config(**options), sam).generate(image)
    filtered = SamSuperpixels(SamSuperpixels.Config(**options, rock_sand_water_thresh=0.3), sam).generate(
        image
    )
    assert 0 < len(filtered.masks) < len(plain.masks)
    off = SamSuperpixels.Config(**options, rock_sand_water_thresh=0.3, rock_sand_water=False)
    assert len(SamSuperpixels(off, sam).generate(image).masks) == len(plain.masks)


def test_options_override_a_preset_and_unknown_ones_are_refused(sam):
    settings = SamSuperpixels.Config(preset="l2_nmsf_s1_rsw3", points_per_side=8).settings()
    assert (settings.points_per_side, settings.crop_n_layers, settings.pred_iou_thresh) == (8, 1, 0.86)
    with pytest.raises(ValidationError, match="points_per_sid"):
        SamSuperpixels.Config(points_per_sid=8)
    with pytest.raises(ValueError, match="needs a SAM"):
        SamSuperpixels()


def test_between_crops_the_mask_of_the_smaller_wins(sam, monkeypatch):
    whole, detail = torch.zeros(2, 64, 64, dtype=torch.bool)
    whole[10:31, 10:31] = detail[10:30, 10:30] = True

    def crop(self, image, box, layer, embedding):
        if box[:2] != [0, 0]:  # the other crops find nothing
            return torch.zeros(0, 64, 64, dtype=torch.bool), *(torch.zeros(0) for _ in range(3))
        mask, area = (whole, 64 * 64) if layer == 0 else (detail, 40 * 40)
        return mask[None], torch.tensor([0.9]), torch.tensor([2]), torch.tensor([float(area)])

    monkeypatch.setattr(SamSuperpixels, "_crop", crop)
    config = SamSuperpixels.Config(preset="official_default", crop_n_layers=1)
    made = SamSuperpixels(config, sam).generate(photograph(64, 64))
    assert np.array_equal(made.masks, detail[None].numpy())
