import copy
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from photographs import OPEN, by_content, photograph
from pydantic import ValidationError
from segment_anything import SamAutomaticMaskGenerator
from segment_anything.modeling import Sam

from harness.models.sam import TinySamSize, build_tiny_sam, sam_frame, sam_input, save_tiny_sam
from harness.superpixels.source import open_sam
from svp.bench import matched_iou
from svp.superpixels import adaptive
from svp.superpixels.prompting import Candidates, exact_candidates, official_candidates
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


def test_prompts_of_several_images_decode_as_those_of_each_alone(sam):
    generator = torch.Generator().manual_seed(1)
    embeddings, asked = torch.randn(3, 64, 12, 12, generator=generator), [5, 0, 8]
    points = torch.rand(sum(asked), 2, generator=generator) * 96

    def gate(ious, levels):
        return ious > 0.1

    with torch.inference_mode():
        together = exact_candidates(sam, embeddings, points, gate, asked)
        alone = [
            official_candidates(sam, embeddings[[image]], points[part], gate)
            for image, part in ((0, slice(0, 5)), (2, slice(5, 13)))
        ]
    assert torch.equal(together.points, torch.cat([alone[0].points, alone[1].points + 5]))
    assert 0 < (together.points < 5).sum() < len(together.points)
    for name, rtol in (("predicted_iou", 1e-5), ("logits", 1e-4)):
        expected = torch.cat([getattr(each, name) for each in alone])
        torch.testing.assert_close(getattr(together, name), expected, atol=1e-5, rtol=rtol)


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


def test_masks_of_a_large_photograph_are_made_a_few_at_a_time(sam, monkeypatch):
    """And of those alone that suppression keeps: at 12 megapixels a candidate takes 48 MB of float32."""
    source = SamSuperpixels(
        SamSuperpixels.Config(pred_iou_thresh=-9.0, stability_score_thresh=0.0, points_per_side=6), sam
    )
    asked, upscale = [], source.upscale
    monkeypatch.setattr(
        source, "upscale", lambda logits, size: asked.append(len(logits)) or upscale(logits, size)
    )
    made = source.generate(np.zeros((1500, 2000, 3), np.uint8))
    assert sum(asked) >= 36 and max(asked) * 1500 * 2000 * 4 <= 1 << 28
    assert asked[-1] < 36 * 3 and len(made.masks) <= asked[-1]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("points_per_batch", 0),
        ("points_per_side", 0),
        ("crop_n_layers", -1),
        ("crop_n_points_downscale_factor", 0),
        ("min_mask_region_area", -1),
    ],
)
def test_numbers_that_mean_nothing_are_refused(name, value):
    with pytest.raises(ValidationError, match=name):
        SamSuperpixels.Config(**{name: value})


def test_a_crop_is_asked_at_one_point_at_least(sam):
    options = {"points_per_side": 1, "crop_n_layers": 1, "crop_n_points_downscale_factor": 2}
    source = SamSuperpixels(SamSuperpixels.Config(**options), sam)
    source.generate(np.zeros((40, 60, 3), np.uint8))
    assert source.prompts_asked == 5  # the image and four crops


def test_a_gate_that_nothing_passes_gives_no_mask(sam):
    made = SamSuperpixels(SamSuperpixels.Config(preset="svp", points_per_side=4, pred_iou_thresh=99), sam)
    assert made.generate(photograph()).masks.shape == (0, 96, 96)


@pytest.mark.parametrize("engine", ["official", "exact", "adaptive"])
@pytest.mark.parametrize("size", [(1, 64), (64, 1), (1, 1), (1, 200), (200, 1), (1, 3000)])
@pytest.mark.parametrize("crops", [0, 1])
def test_one_pixel_images(sam, size, engine, crops):
    options = OPEN | {"min_mask_region_area": 4, "engine": engine, "crop_n_layers": crops}
    source = SamSuperpixels(SamSuperpixels.Config(**options), sam)
    masks = source.generate(photograph(*size)).masks
    assert len(masks) and masks.shape[1:] == size and masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize(
    ("size", "frame"), [((1, 200), (1, 96)), ((200, 1), (96, 1)), ((1, 3000), (1, 96)), ((60, 100), (58, 96))]
)
def test_an_image_keeps_a_pixel_a_side_in_sams_square(sam, size, frame):
    assert sam_frame(*size, 96) == frame
    image = np.full((*size, 3), 255, np.uint8)
    pixels = sam_input(image, sam)
    filled = pixels[0] != 0  # the padding is zero, white is not
    assert pixels.shape == (3, 96, 96) and filled[: frame[0], : frame[1]].all()
    assert int(filled.sum()) == frame[0] * frame[1]


ADAPTIVE = OPEN | {"points_per_side": 8, "engine": "adaptive", "adaptive_share": 0.5}


@pytest.mark.parametrize("changes", [{}, {"crop_n_layers": 1, "points_per_side": 6}])
def test_images_searched_together_get_the_masks_of_each_alone(sam, changes):
    images = [
        photograph(*size, seed=seed) for seed, size in enumerate([(96, 96), (60, 100), (1, 64), (300, 260)])
    ]
    one_by_one = SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE | changes), sam)
    alone = [one_by_one.generate(image) for image in images]
    assert all(len(made.masks) for made in alone)
    for at_once, order in ((4, [0, 1, 2, 3]), (3, [3, 1, 0, 2])):
        source = SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE | changes, adaptive_images=at_once), sam)
        together = source.generate_all([images[i] for i in order])
        assert source.prompts_asked == one_by_one.prompts_asked
        for made, i in zip(together, order, strict=True):
            assert by_content(made.masks) == by_content(alone[i].masks)
            assert made.scores == pytest.approx(alone[i].scores, abs=1e-5)


def test_images_searched_together_share_the_decoder_calls(sam, monkeypatch):
    calls = []

    def counting(sam, embeddings, points, gate, prompts):
        calls.append((len(embeddings), len(points)))
        return exact_candidates(sam, embeddings, points, gate, prompts)

    monkeypatch.setattr(adaptive, "exact_candidates", counting)
    images = [photograph(seed=seed) for seed in range(5)]
    source = SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE, adaptive_images=3), sam)
    source.generate_all(images[:1])
    rounds = len(calls)
    calls.clear()
    source.generate_all(images)
    assert {embeddings for embeddings, _ in calls} == {3, 2}  # three images, then what is left
    assert len(calls) <= 2 * (rounds + 1)
    calls.clear()
    SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE, points_per_batch=7), sam).generate_all(images)
    assert max(points for _, points in calls) == 7


def test_batches_of_prompts_do_not_change_what_adaptive_finds(sam):
    made = [
        SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE, points_per_batch=batch), sam).generate(photograph())
        for batch in (3, 256)
    ]
    assert by_content(made[0].masks) == by_content(made[1].masks)


def test_adaptive_decodes_in_bfloat16_where_asked(sam, monkeypatch):
    seen, reckoned, survivors = [], [], adaptive._survivors
    layer = sam.mask_decoder.output_upscaling[0]
    hook = layer.register_forward_hook(lambda _module, _given, made: seen.append(made.dtype))

    def reckon(*given):
        reckoned.append(torch.is_autocast_enabled("cpu"))
        return survivors(*given)

    monkeypatch.setattr(adaptive, "_survivors", reckon)
    found = {}
    for compute in ("float32", "bfloat16"):
        source = SamSuperpixels(SamSuperpixels.Config(**ADAPTIVE, compute=compute), sam)
        found[compute] = source.generate(photograph())
    hook.remove()
    assert reckoned and not any(reckoned)  # pixels are counted: 8 bits hold no area
    assert set(seen) == {torch.float32, torch.bfloat16} and next(sam.parameters()).dtype == torch.float32
    # a random decoder's logits lie close to the cut: masks agree, if not by the pixel
    one, other = (made.masks.reshape(len(made.masks), -1) for made in found.values())
    assert 0.7 < matched_iou(one, other)[0] < 1


@pytest.mark.parametrize("engine", ["exact", "official"])
def test_engines_that_promise_sams_masks_refuse_half_precision(engine):
    with pytest.raises(ValidationError, match="needs engine: adaptive"):
        SamSuperpixels.Config(engine=engine, compute="bfloat16")


@pytest.mark.parametrize("candidates", [official_candidates, exact_candidates])
def test_every_input_follows_the_model_to_its_device(sam, candidates, monkeypatch):
    """The meta device stands in for a GPU as far as it can: it holds no values."""
    source = SamSuperpixels(SamSuperpixels.Config(**OPEN), copy.deepcopy(sam).to("meta"))

    def prompted(points, **_):
        raise RuntimeError(f"prompts on {points[0].device} and {points[1].device}")

    monkeypatch.setattr(source.sam.prompt_encoder, "forward", prompted)
    with torch.inference_mode():
        assert source.encode(photograph()).device.type == "meta"
        embedding = source._given(np.zeros((64, 12, 12), np.float32))
        assert embedding.device.type == "meta"
        with pytest.raises(RuntimeError, match="prompts on meta and meta"):
            candidates(source.sam, embedding, torch.rand(5, 2) * 96, lambda ious, levels: ious > 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("engine", ["official", "exact", "adaptive"])
def test_the_gpu_finds_the_masks_of_the_cpu_and_hands_them_over(sam, engine):
    image, config = photograph(60, 100), SamSuperpixels.Config(**OPEN, engine=engine)
    here = SamSuperpixels(config, sam).generate(image)
    there = SamSuperpixels(config, copy.deepcopy(sam).to("cuda")).generate(image)
    one, other = (made.masks.reshape(len(made.masks), -1) for made in (here, there))
    assert matched_iou(one, other)[0] > 0.9


@pytest.mark.parametrize(
    ("there", "asked", "expected"), [(True, None, "cuda"), (False, None, "cpu"), (True, "cpu", "cpu")]
)
def test_a_sam_is_opened_on_the_gpu_where_there_is_one(monkeypatch, tmp_path, there, asked, expected):
    size = TinySamSize(width=32, prompt_width=32)
    save_tiny_sam(build_tiny_sam(size), size, tmp_path)
    moved = []
    monkeypatch.setattr(Sam, "to", lambda self, device: moved.append(device) or self)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: there)
    assert isinstance(open_sam(tmp_path, device=asked), Sam) and moved == [expected]


def logits_of(*places, size=(64, 64)):
    """Logits 5 inside each mask's rectangles ``(rows, columns, value)``, painted in turn, -5 outside."""
    logits = torch.full((len(places), *size), -5.0)
    for mask, parts in zip(logits, places, strict=True):
        for top, bottom, left, right, value in parts:
            mask[top:bottom, left:right] = value
    return logits


def selected(logits, ious, levels, **options):
    """What the source returns where its prompts draw the given candidates, at the image's own size."""

    class Drawn(SamSuperpixels):
        def encode(self, image):
            return None

        def decode(self, embedding, points):
            scores, kinds = torch.tensor(ious), torch.tensor(levels)
            kept = torch.nonzero(self._gate(scores, kinds)).flatten()
            return Candidates(logits[kept], scores[kept], kinds[kept], kept)

        def upscale(self, logits, size):
            return logits

    plain = SimpleNamespace(image_encoder=SimpleNamespace(img_size=64), mask_threshold=0.0)
    config = Drawn.Config(preset="svp", engine="official", points_per_batch=1024, **options)
    return Drawn(config, plain).generate(np.zeros((64, 64, 3), np.uint8))


def squares(*spans):
    masks = np.zeros((len(spans), 64, 64), bool)
    for mask, (top, bottom, left, right) in zip(masks, spans, strict=True):
        mask[top:bottom, left:right] = True
    return masks


def test_a_whole_wins_the_suppression_against_a_surer_part():
    logits = logits_of([(10, 30, 10, 30, 5.0)], [(10, 31, 10, 30, 5.0)], [(40, 60, 40, 60, 5.0)])
    made = selected(logits, [0.95, 0.80, 0.90], [1, 2, 0])
    assert np.array_equal(made.masks, squares((10, 31, 10, 30), (40, 60, 40, 60)))
    assert made.levels.tolist() == [2, 0] and made.scores.tolist() == pytest.approx([0.80, 0.90])


def test_the_stability_bias_lets_a_level_pass():
    # 20 rows are inside even with the cut raised by 1, 22 with it lowered: 0.909 against 0.92
    shaky = [[(y, y + 22, 10, 30, 0.5), (y, y + 20, 10, 30, 5.0)] for y in (5, 35)]
    logits, drawn = logits_of(*shaky), squares((5, 27, 10, 30), (35, 57, 10, 30))
    assert not len(selected(logits, [0.95, 0.95], [2, 1]).masks)
    made = selected(logits, [0.95, 0.95], [2, 1], stability_score_bias=(0.0, 0.0, 0.04))
    assert np.array_equal(made.masks, drawn[:1]) and made.levels.tolist() == [2]


def test_small_regions_go_and_of_two_alike_the_unchanged_one_stays():
    far_island, hole = (50, 52, 50, 52, 5.0), (45, 48, 5, 8, -5.0)
    logits = logits_of(
        [(10, 30, 10, 29, 5.0), far_island],  # its box is another's only once the island is gone
        [(10, 30, 10, 30, 5.0)],
        [(40, 60, 0, 20, 5.0), hole],
    )
    made = selected(logits, [0.95, 0.85, 0.90], [2, 2, 2])
    assert np.array_equal(made.masks, squares((10, 30, 10, 30), (40, 60, 0, 20)))
    assert made.scores.tolist() == pytest.approx([0.85, 0.90])
    kept = selected(logits, [0.95, 0.85, 0.90], [2, 2, 2], min_mask_region_area=0).masks
    assert sorted(kept.sum(axis=(1, 2))) == [20 * 19 + 4, 20 * 20 - 9, 20 * 20]


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

    def placed(self, view, found):
        if view.box[:2] != [0, 0]:  # the other crops find nothing
            return torch.zeros(0, 64, 64, dtype=torch.bool), *(torch.zeros(0) for _ in range(3))
        mask, area = (whole, 64 * 64) if view.size == (64, 64) else (detail, 40 * 40)
        return mask[None], torch.tensor([0.9]), torch.tensor([2]), torch.tensor([float(area)])

    monkeypatch.setattr(SamSuperpixels, "_searched", lambda self, views: iter(views))
    monkeypatch.setattr(SamSuperpixels, "_placed", placed)
    config = SamSuperpixels.Config(preset="official_default", crop_n_layers=1)
    made = SamSuperpixels(config, sam).generate(photograph(64, 64))
    assert np.array_equal(made.masks, detail[None].numpy())
