from functools import partial

import numpy as np
import pytest
import torch
from photographs import OPEN, by_content, photograph
from PIL import Image
from segment_anything import SamAutomaticMaskGenerator

from svp.bench import bench_projector, bench_superpixels, matched_iou
from svp.overlay import draw_attention, draw_superpixels, superpixel_overlay
from svp.superpixels import adaptive as adaptive_module
from svp.superpixels.adaptive import Lattice, adaptive_candidates, progressive_order
from svp.superpixels.calibration import calibrate
from svp.superpixels.grid import Grid
from svp.superpixels.presets import Settings
from svp.superpixels.prompting import Candidates
from svp.superpixels.sam import SamSuperpixels
from svp.superpixels.slic import Slic


def rows(*spans):
    masks = np.zeros((len(spans), 20), bool)
    for mask, (start, stop) in zip(masks, spans, strict=True):
        mask[start:stop] = True
    return masks


def test_matching_is_one_to_one_and_unmatched_counts_zero():
    assert matched_iou(rows((0, 10), (10, 20)), rows((10, 20), (0, 10)))[0] == 1
    # two copies of one mask cannot both match it
    assert matched_iou(rows((0, 10), (0, 10)), rows((0, 10)))[0] == 0.5
    assert matched_iou(rows((0, 10)), rows((0, 10), (10, 20), (3, 4)))[0] == pytest.approx(1 / 3)
    assert matched_iou(rows((0, 10)), rows((5, 15)))[0] == pytest.approx(1 / 3)
    assert matched_iou(rows(), rows((0, 1)))[0] == 0 and matched_iou(rows(), rows())[0] == 1


def test_adaptive_finds_the_best_prompt_of_every_object(sam, monkeypatch):
    """Four squares on a plain ground; predicted IoU peaks at one point of each, which only a search finds."""
    side, cell = 32, sam.prompt_encoder.image_embedding_size[0] * 4
    unit = cell / side
    lattice = torch.stack(torch.meshgrid(torch.arange(side), torch.arange(side), indexing="xy"), -1).flatten(
        0, 1
    )
    points = (lattice + 0.5) * sam.image_encoder.img_size / side
    corners = [(x, y) for x in (3, 18) for y in (1, 20)]
    peaks = torch.tensor([(x + 2 + i, y + 6 - 2 * i) for i, (x, y) in enumerate(corners)])
    masks = torch.full((len(corners), cell, cell), -4.0)
    for mask, (x, y) in zip(masks, corners, strict=True):
        mask[int(y * unit) : int((y + 8) * unit), int(x * unit) : int((x + 8) * unit)] = 4.0

    def decode(_sam, _embeddings, asked, gate, _prompts):
        at = (asked * side / sam.image_encoder.img_size).long()
        off = (at[:, None] - torch.tensor(corners)).float()
        prompt, thing = torch.nonzero(((off >= 0) & (off < 8)).all(-1), as_tuple=True)
        iou = 0.9 - 0.03 * (at[prompt] - peaks[thing]).float().norm(dim=1)
        levels = torch.full_like(prompt, 2)
        kept = gate(iou, levels)
        return Candidates(masks[thing][kept], iou[kept], levels[kept], prompt[kept])

    monkeypatch.setattr(adaptive_module, "exact_candidates", decode)
    lattice_of_image = Lattice(points, (sam.image_encoder.img_size,) * 2)
    ((found, asked),) = adaptive_candidates(
        sam, None, [lattice_of_image], lambda iou, _: iou > 0.5, Settings(), share=0.25, batch=64
    )
    assert asked <= 256
    best = {
        tuple(lattice[p].tolist())
        for p, iou in zip(found.points, found.predicted_iou, strict=True)
        if iou > 0.899
    }
    assert best == {tuple(peak.tolist()) for peak in peaks}


@pytest.mark.parametrize("side", [1, 2, 3, 8, 12])
def test_progressive_order_is_a_permutation(side):
    assert sorted(progressive_order(side).tolist()) == list(range(side * side))


@pytest.mark.parametrize("level", [1, 2])
def test_each_prefix_is_spread_over_the_image(level):
    places = progressive_order(8)[: 4**level]
    block = 8 // 2**level
    cells = {(int(p) // 8 // block, int(p) % 8 // block) for p in places}
    assert len(cells) == 4**level  # one point in every block


def test_adaptive_asks_a_share_of_the_prompts_and_finds_stable_masks(sam):
    options = OPEN | {"points_per_side": 8, "engine": "adaptive", "adaptive_share": 0.25}
    source = SamSuperpixels(SamSuperpixels.Config(**options), sam)
    made = source.generate(photograph())
    assert 0 < source.prompts_asked <= 16
    assert len(made.masks) and made.masks.any(axis=(1, 2)).all()


def test_adaptive_stops_where_a_whole_covers_all(sam, monkeypatch):
    options = {"preset": "official_default", "points_per_side": 8, "pred_iou_thresh": -9}
    monkeypatch.setattr(sam, "mask_threshold", -1e4)  # every mask is the whole image
    adaptive = SamSuperpixels(SamSuperpixels.Config(**options, engine="adaptive", adaptive_share=1), sam)
    made = adaptive.generate(photograph())
    # the first round asks 16, and each round after it the 8 points around the best so far at most
    assert 16 < adaptive.prompts_asked < 64
    assert len(made.masks) == 1 and made.masks.all()


def test_adaptive_with_every_prompt_and_nothing_to_suppress_is_the_full_grid(sam):
    # no whole passes, so none is left unexplored; scores on low-resolution logits decide nothing
    options = OPEN | {
        "score_thresh_offset": (0.0, 0.0, -9.0),
        "stability_score_thresh": 0.0,
        "box_nms_thresh": 1.0,
    }
    full = SamSuperpixels(SamSuperpixels.Config(**options), sam)
    adaptive = SamSuperpixels(SamSuperpixels.Config(**options, engine="adaptive", adaptive_share=1), sam)
    one, other = full.generate(photograph(60, 90)), adaptive.generate(photograph(60, 90))
    assert adaptive.prompts_asked == full.prompts_asked == 36
    assert len(one.masks) > 9 and by_content(one.masks) == by_content(other.masks)


@pytest.fixture
def confident(sam):
    """The random SAM with far larger logits and predicted IoU: masks pass the official thresholds."""
    import copy

    confident = copy.deepcopy(sam)
    with torch.no_grad():
        for mlp in confident.mask_decoder.output_hypernetworks_mlps:
            mlp.layers[-1].weight.mul_(200)
            mlp.layers[-1].bias.mul_(200)
        confident.mask_decoder.iou_prediction_head.layers[-1].bias.add_(0.6)
    confident.mask_threshold = 400.0
    return confident


def test_superpixel_benchmark_compares_with_the_official_generator(confident):
    images = [photograph(seed=s) for s in range(2)]
    measure = partial(bench_superpixels, confident, points_per_side=6, options={"min_mask_region_area": 4})
    result = measure(images)
    official = [SamAutomaticMaskGenerator(confident, points_per_side=6).generate(i) for i in images]
    assert result["official_masks"] == sum(map(len, official)) > 4
    assert (result["exact_missing"], result["exact_added"]) == (0, 0)
    assert result["exact_matched_iou"] > 0.999
    assert result["adaptive_prompt_share"] <= 0.25
    assert 0 <= result["adaptive_matched_iou"] <= 1 and result["images"] == 2
    seconds = result["seconds"]
    assert all(value > 0 for value in seconds.values())
    for ratio, above in (
        ("", "official"),
        ("_same_gate", "official_same_gate"),
        ("_over_full", "full"),
        ("_over_one_by_one", "adaptive_one_by_one"),
    ):
        assert result[f"adaptive_speedup{ratio}"] == seconds[above] / seconds["adaptive"]
    alone = [measure([image]) for image in images]
    one, other = (single["adaptive_matched_iou"] for single in alone)
    assert result["adaptive_matched_iou"] == pytest.approx((one + other) / 2)
    # sd of two values is their distance over sqrt(2), its standard error that over sqrt(2) again
    assert result["adaptive_matched_iou_standard_error"] == pytest.approx(abs(one - other) / 2)
    assert one != other and alone[0]["adaptive_matched_iou_standard_error"] is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"options": {"crop_n_layers": 1}}, "crops are encoded behind it; set crop_n_layers: 0"),
        ({"thresholds": {"box_nms_thresh": 0.5}}, "'box_nms_thresh' is none of pred_iou_thresh and"),
    ],
)
def test_superpixel_benchmark_refuses_what_it_would_time_falsely(sam, changes, message):
    with pytest.raises(ValueError, match=message):
        bench_superpixels(sam, [photograph()], points_per_side=2, **changes)


def test_superpixel_benchmark_convolves_in_float32_and_leaves_the_setting(confident):
    seen = []
    layer = confident.mask_decoder.output_upscaling[0]
    layer.register_forward_hook(lambda *_: seen.append(torch.backends.cudnn.allow_tf32))
    before = torch.backends.cudnn.allow_tf32
    bench_superpixels(confident, [photograph(seed=0)], points_per_side=2, warm_up=0)
    assert seen and not any(seen)
    assert torch.backends.cudnn.allow_tf32 is before


@pytest.mark.parametrize("ssa", ["superpixel_sspe", "plain"])
def test_projector_benchmark_counts_what_the_shapes_say(ssa):
    sizes = {"superpixels": 5, "grid": (4, 6), "vision_width": 32, "language_width": 48}
    result = bench_projector(batches=(1, 2), **sizes, repeats=1, options={"ssa": ssa})
    for parts in result["batches"].values():
        assert set(parts) == {"pool", "sspe", "ssa", "mlp", "all"}
        for name, part in parts.items():
            assert part["flops"] == part["analytic_flops"] > 0, name
            assert part["median_ms"] > 0
    parameters = result["parameters"]
    assert parameters["mlp"] == 32 * 48 + 48 + 48 * 48 + 48
    assert parameters["all"] == parameters["mlp"] + parameters["sspe"] + parameters["ssa"]


@pytest.mark.parametrize(
    ("build", "low", "high"),
    [
        (lambda v: Grid(Grid.Config(rows=round(v), columns=4)), 1, 20),
        (lambda v: Grid(Grid.Config(rows=round(20 / v), columns=4)), 1, 20),  # falls where the other rises
        (lambda v: Slic(Slic.Config(segments=round(v))), 2, 60),
    ],
)
def test_calibration_finds_the_wanted_count(build, low, high):
    images = [photograph(80, 60, seed) for seed in range(2)]
    found = calibrate(build, images, 24, low=low, high=high, tolerance=0.1)
    assert found.reached and abs(found.mean_count - 24) <= 2.4
    counts = [len(build(found.value).generate(i).masks) for i in images]
    assert list(found.counts) == counts and found.mean_count == np.mean(counts)


def test_calibration_says_when_the_count_cannot_be_had():
    image = photograph(40, 40)
    found = calibrate(lambda v: Grid(Grid.Config(rows=round(v), columns=1)), [image], 30, low=1, high=5)
    assert not found.reached and found.mean_count == 5 and dict(found.tried)[1] == 1
    with pytest.raises(ValueError, match="images"):
        calibrate(lambda v: Grid(), [], 30, low=1, high=5)


def test_overlay_paints_the_smallest_on_top_and_leaves_the_rest():
    image = np.full((12, 12, 3), 100, np.uint8)
    masks = np.zeros((2, 12, 12), bool)
    masks[1, 2:10, 2:10] = masks[0, 4:8, 4:8] = True
    drawn = draw_superpixels(image, masks)
    assert (drawn[0, 0] == 100).all() and (drawn[11, 11] == 100).all()
    inner, outer = drawn[6, 6], drawn[9, 5]
    assert (inner != outer).any() and (inner != 100).any() and (outer != 100).any()
    assert (drawn[4, 5] == 255).all()  # the outline
    assert np.array_equal(draw_superpixels(image, masks[:0]), image)


def test_attention_lights_the_patch_that_is_looked_at():
    image, mask = np.full((30, 40, 3), 200, np.uint8), np.zeros((30, 40), bool)
    mask[2:8, 2:8] = True
    weights = np.zeros(12)
    weights[6] = 0.7  # row 1, column 2 of 3 x 4 patches of 10 pixels
    drawn = draw_attention(image, weights, (3, 4), mask)
    assert (drawn[15, 25] >= 180).all() and (drawn[29, 0] == 40).all()
    assert (drawn[2, 2:8] == 255).all() and (drawn[4, 4] == 40).all()  # outlined, not filled
    assert draw_attention(image, np.zeros(12), (3, 4)).max() == 40


def test_outlines_show_on_white_and_on_black():
    masks = np.zeros((1, 30, 40), bool)
    masks[0, 8:20, 8:20] = True
    for shade in (0, 255):
        drawn = draw_superpixels(np.full((30, 40, 3), shade, np.uint8), masks).astype(int)
        assert np.ptp(drawn[5:12, 14].sum(axis=1)) > 250


def test_overlay_of_a_file(tmp_path):
    Image.fromarray(photograph(30, 40)).save(tmp_path / "photo.png")
    out = tmp_path / "deep" / "overlay.png"
    said = superpixel_overlay(tmp_path / "photo.png", Grid(Grid.Config(rows=2, columns=3)), out)
    assert (said["count"], said["coverage"], said["overlap"]) == (6, 1.0, 0.0)
    assert np.array(Image.open(out)).shape == (30, 40, 3)
