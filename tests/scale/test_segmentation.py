"""`svp segment`: a photograph from pixels to masks, as the workflow's prediction has it from its caches."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from saved_transformers_sam import save_transformers_sam

from harness.cli import app
from harness.config import ConfigError
from harness.data.tables import load_tables
from harness.images import read_rgb
from harness.prediction import encode_mask, predict_stage
from harness.running.stages import run_stage
from harness.scoring.rle import overlap
from harness.segmentation import Segmenter
from harness.tensors import save_tensors
from harness.training.assembly import RunData, build_model
from svp.commands import attention
from svp.overlay import draw_attention

ROWS = ["svp", "mlp", {"name": "text_blind", "of": "svp"}]


@pytest.fixture
def finished(study):
    """A study whose rows have weights: random ones, saved as training saves them."""
    made = study(ROWS, {})
    made.plan.save(made.plan.config_file)
    for stage, key in made.plan.shared_stages:
        run_stage(stage, made.plan.config_file, key=key)
    for run in made.plan.trained:
        model = build_model(made.plan, run, RunData(made.plan, run).vision_width)
        save_tensors(made.plan.weights(run.id), model.trained_state())
    return made


@pytest.mark.parametrize("row", ["svp", "mlp"])
def test_a_photograph_alone_gets_the_masks_of_the_workflow(finished, row):
    plan = finished.plan
    run = plan.run_named(row)
    predict_stage(plan, run)
    rows = pd.read_parquet(plan.prediction_file(run.id))
    tables = load_tables(plan.prepared_dir(run))
    texts = tables.expressions.set_index(["dataset", "sent_id"])["sentence"]
    segment, wrong, pixels = Segmenter(plan, run), 0, 0
    for (dataset, image_id), group in list(rows.groupby(["dataset", "image_id"]))[:4]:
        said = [texts[dataset, sent] for sent in group["sent_id"]]
        found = segment(read_rgb(tables.image_path(image_id)), said)
        assert found.visual_tokens == group["visual_tokens"].tolist() and all(found.emitted)
        assert (found.superpixels is None) == (row == "mlp")
        if row == "svp":
            assert [len(found.superpixels)] * len(group) == found.visual_tokens
        for mask, rle in zip(found.masks, group["rle"], strict=True):
            both, theirs, ours = overlap(encode_mask(mask), rle, *mask.shape, "a mask")
            wrong, pixels = wrong + theirs + ours - 2 * both, pixels + mask.size
    assert wrong <= 1e-3 * pixels  # sums of a batch are taken in another order


def test_superpixels_of_another_sam_are_made_from_the_photograph(study, tmp_path):
    """The model's own SAM embedding is of no use to it; it encodes for itself, here and in the workflow."""
    save_transformers_sam(tmp_path / "sam")
    options = {"checkpoint": str(tmp_path / "sam"), "points_per_side": 4, "pred_iou_thresh": -10.0}
    source = {"superpixels.source": "sam_transformers", "superpixels.options": options}
    made = study([{"name": "svp", "set": source}], {})
    made.plan.save(made.plan.config_file)
    for stage, key in made.plan.shared_stages:
        run_stage(stage, made.plan.config_file, key=key)
    (run,) = made.plan.trained
    data = RunData(made.plan, run)
    save_tensors(made.plan.weights(run.id), build_model(made.plan, run, data.vision_width).trained_state())
    image_id = int(data.tables.images["image_id"].iloc[0])
    found = Segmenter(made.plan, run)(read_rgb(data.tables.image_path(image_id)), ["the left cup"])
    stored = data.superpixels.batch([image_id])
    assert found.visual_tokens == [len(found.superpixels)] == [int(stored.lengths[0])]


def test_any_photograph_is_answered_at_its_own_size(finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    photograph = np.kron(rng.integers(0, 256, (5, 8, 3)), np.ones((13, 17, 1))).astype(np.uint8)
    Image.fromarray(photograph).save(tmp_path / "photo.png")
    (tmp_path / "study.yaml").write_text(json.dumps(finished.raw))
    command = ["segment", str(tmp_path / "photo.png"), "the left cup", "red star"]
    # The later file counts: a study is as many files as it was run with.
    (tmp_path / "other.yaml").write_text(json.dumps({"study": "other", "title": "another"}))
    files = ["--study", str(tmp_path / "other.yaml"), "--study", str(tmp_path / "study.yaml")]
    asked = [*command, *files, "--out", str(tmp_path / "out.png")]
    app([*asked, "--json"])
    told = json.loads(capsys.readouterr().out)
    assert [m["expression"] for m in told["masks"]] == ["the left cup", "red star"]
    assert all(m["rle"]["size"] == [65, 136] for m in told["masks"]) and all(
        m["visual_tokens"] >= 1 for m in told["masks"]
    )
    assert Image.open(tmp_path / "out.png").size[0] > 500 and (tmp_path / "out.pdf").is_file()
    photo = Image.open(tmp_path / "photo.png")
    turned = Image.Exif()
    turned[0x0112] = 6  # held upright: to be turned by a quarter when it is shown
    photo.transpose(Image.Transpose.ROTATE_90).save(tmp_path / "turned.png", exif=turned)
    app([command[0], str(tmp_path / "turned.png"), *asked[2:], "--json"])
    assert json.loads(capsys.readouterr().out)["masks"] == told["masks"]
    with pytest.raises(ValueError, match="there is no photograph .*gone.jpg"):
        app([command[0], str(tmp_path / "gone.jpg"), *asked[2:]])
    with pytest.raises(ConfigError, match="no row 'spv'; did you mean 'svp'"):
        app([*asked, "--row", "spv"])
    with pytest.raises(ValueError, match="text_blind.* is a control"):
        app([*asked, "--row", "text_blind"])
    finished.plan.weights(finished.plan.run_named("mlp").id).unlink()
    with pytest.raises(ValueError, match=r"mlp.* is not trained: .* run the study first"):
        app([*asked, "--row", "mlp"])


def test_where_a_trained_svp_looks_can_be_drawn(finished, tmp_path, capsys):
    rng = np.random.default_rng(0)
    pixels = np.kron(rng.integers(0, 256, (5, 8, 3)), np.ones((12, 17, 1))).astype(np.uint8)  # 60 x 136
    Image.fromarray(pixels).save(tmp_path / "photo.png")
    (tmp_path / "study.yaml").write_text(json.dumps(finished.raw))
    files = {"study": [tmp_path / "study.yaml"], "out": tmp_path / "looks.png"}
    attention(tmp_path / "photo.png", most=2, **files)
    told = json.loads(capsys.readouterr().out)
    segmenter = Segmenter(finished.plan, finished.plan.run_named("svp"))
    seen = segmenter.read(pixels)
    assert told["superpixels"] == len(seen.superpixels.masks)
    # the largest superpixel comes first, lit by the mean of its heads
    drawn = np.asarray(Image.open(tmp_path / "looks.png")).astype(int)
    assert drawn.shape == (60, 136 * told["drawn"], 3)
    with torch.no_grad():
        weights = segmenter.projector.attention_maps(seen.features)
    assert torch.allclose(weights.sum(dim=-1), torch.ones(weights.shape[:2]), atol=1e-5)
    largest = int(np.argmax(seen.superpixels.masks.sum(axis=(1, 2))))
    mask = seen.superpixels.masks[largest]
    alone = draw_attention(pixels, weights[largest].mean(dim=0).numpy(), seen.features.grid, mask)
    assert np.array_equal(drawn[:, :136], alone)
    with pytest.raises(ValueError, match="mlp has no SSA"):
        attention(tmp_path / "photo.png", row="mlp", **files)


def test_superpixels_of_a_large_photograph_are_made_from_a_small_copy(finished, monkeypatch):
    rng = np.random.default_rng(0)
    photograph = np.kron(rng.integers(0, 256, (5, 8, 3)), np.ones((12, 17, 1))).astype(np.uint8)  # 60 x 136
    segment = Segmenter(finished.plan, finished.plan.run_named("svp"))
    made, generate = [], segment._source.generate
    monkeypatch.setattr(
        segment._source, "generate", lambda image, **given: made.append(generate(image, **given)) or made[-1]
    )
    whole = segment(photograph, ["the left cup"])
    assert made[0].masks.shape[1:] == (60, 136) and np.array_equal(whole.superpixels, made[0].masks)
    monkeypatch.setattr("harness.segmentation._LONGEST", 68)
    small = segment(photograph, ["the left cup"])
    assert made[1].masks.shape[1:] == (30, 68) and small.masks.shape == (1, 60, 136)
    assert small.superpixels.shape == (len(made[1].masks), 60, 136)
    assert np.array_equal(small.superpixels[:, ::2, ::2], made[1].masks)
