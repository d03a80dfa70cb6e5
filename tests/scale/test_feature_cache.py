"""The cache of frozen features: what is stored, what is encoded on the fly, and that nobody can tell."""

import errno
import json
import os
import resource
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Dinov2Model

from harness.features import cache
from harness.features.cache import FeatureArray, feature_stage
from harness.images import read_rgb
from harness.models.sam import load_sam
from harness.running.stages import run_stage
from harness.training.assembly import RunData

ITEMS = ("patches", "levels", "sam")
LEVELS = {"models.vision.levels": [1, 2]}


def values(study, ids):
    data = RunData(study.plan, study.run)
    features = data.features(ids)
    return [features.patches, *features.levels, data.sam_embeddings(ids)]


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_stored_partly_stored_and_never_stored_features_are_the_same_bits(study, dtype):
    budgets = [{}, {"sam": 0.0003, "patches": 0.00004, "levels": 0}, dict.fromkeys(ITEMS, 0)]
    found, stored = [], []
    for budget in budgets:
        changes = {**LEVELS, "models.features.dtype": dtype, "models.features.budget_gb": budget}
        this = study(["token_packer"], changes)
        folders = this.features()
        stored.append([len(FeatureArray(folders[item])) for item in ITEMS])
        found.append(values(this, this.tables.images["image_id"].tolist()))
    count = len(this.tables.images)
    assert stored[0] == [count] * 3 and stored[2] == [0] * 3
    # a row of sam is 32 x 12 x 12, of patches 144 x 32 half-precision numbers: 9,216 bytes each
    assert stored[1] == [0.00004 * 1e9 // 9216, 0, min(count, 0.0003 * 1e9 // 9216)]
    for other in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(found[0], other, strict=True))
    assert found[0][0].dtype == torch.float32


def test_rows_are_what_the_encoders_give(study, weights):
    this = study()
    this.features()
    image_id = int(this.tables.images["image_id"].iloc[3])
    image = read_rgb(this.tables.image_path(image_id))
    pixels = torch.tensor(image).permute(2, 0, 1)[None] / 255
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    pixels = (pixels - mean.view(1, 3, 1, 1)) / std.view(1, 3, 1, 1)
    sam = load_sam(weights / "sam")
    with torch.no_grad():
        patches = Dinov2Model.from_pretrained(weights / "vision").eval()(pixels).last_hidden_state[:, 1:]
        embedding = sam.image_encoder(sam.preprocess(torch.tensor(image).permute(2, 0, 1)[None].float()))
    got = values(this, [image_id])
    assert torch.allclose(got[0], patches, atol=2e-3) and torch.allclose(got[-1], embedding, atol=2e-3)


def test_a_killed_job_goes_on_with_the_next_shard_and_other_code_starts_anew(study, monkeypatch):
    this = study(changes={"models.features.dtype": "bfloat16", "data.train_images": 9})
    folder = this.features(shard_bytes=3 * 9216)["patches"]
    index = json.loads((folder / "index.json").read_text())
    assert {len(s) for s in index["shards"][:-1]} == {3}
    whole = {p.name: p.read_bytes() for p in folder.glob("shard-*")}
    (folder / "index.json").unlink()
    (folder / "shard-00001.npy").unlink()
    kept = folder / "shard-00000.npy"
    before = kept.stat().st_mtime_ns
    this.features(shard_bytes=3 * 9216)
    assert {p.name: p.read_bytes() for p in folder.glob("shard-*")} == whole
    assert kept.stat().st_mtime_ns == before
    this.features(shard_bytes=3 * 9216, identity="other code")
    assert kept.stat().st_mtime_ns > before


def test_weights_replaced_where_they_lie_leave_no_shard_of_the_old_ones(
    study, weights, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)  # locks lie under the working folder
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # a stage sets them
    sam = tmp_path / "sam"
    shutil.copytree(weights / "sam", sam)
    plan = study(("svp",), {"models.sam.source": str(sam), "superpixels": "sam"}).plan
    plan.save(plan.config_file)
    keys = plan.keys(plan.trained[0])
    jobs = {"features": keys.feature("sam"), "superpixels": keys.superpixels}
    shards = [plan.feature_dir(jobs["features"]) / "shard-00000.npy"]
    shards.append(plan.superpixel_dir(jobs["superpixels"]) / "part-00000.parquet")

    def written():
        for stage, key in jobs.items():
            run_stage(stage, plan.config_file, key=key)
        return [path.read_bytes() for path in shards], [path.stat().st_mtime_ns for path in shards]

    (_, first), (kept, again) = written(), written()
    assert first == again  # a job that was only interrupted goes on
    state = load_file(sam / "model.safetensors")
    save_file({k: 1.5 * v for k, v in state.items()}, sam / "model.safetensors")
    made_anew, _ = written()
    assert all(new != old for new, old in zip(made_anew, kept, strict=True))


def test_images_of_train_are_stored_first(study):
    this = study(changes={"models.features.budget_gb": {"patches": 8 * 9216 / 1e9}})
    array = FeatureArray(this.features()["patches"])
    expressions = this.tables.expressions
    train = set(expressions.loc[expressions["split"] == "train", "image_id"])
    assert len(train) == 8 and all(i in array for i in train)


def test_a_damaged_shard_is_refused_by_name(study):
    folder = study(changes={"models.features.compute": "bfloat16"}).features()["sam"]
    shard = folder / "shard-00000.npy"
    good = shard.read_bytes()
    shard.write_bytes(good[: len(good) // 2])
    with pytest.raises(ValueError, match=r"shard-00000.npy cannot be read .* delete the folder"):
        FeatureArray(folder)
    np.save(shard, np.zeros((2, 3), np.float16))
    with pytest.raises(ValueError, match=r"shard-00000.npy holds \(2, 3\), its index says"):
        FeatureArray(folder)


def many_shards(folder, count):
    """An array of ``count`` shards of one row each, which holds the image's id."""
    folder.mkdir()
    for image_id in range(count):
        np.save(folder / f"shard-{image_id:05d}.npy", np.full((1, 4), image_id, np.float16))
    index = {
        "version": cache.VERSION,
        "dtype": "float16",
        "shape": [4],
        "shards": [[i] for i in range(count)],
    }
    (folder / "index.json").write_text(json.dumps(index))
    return folder


def test_many_arrays_of_many_shards_hold_few_files_open(tmp_path):
    folder = many_shards(tmp_path / "sam", 100)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    cache._open_shard.cache_clear()
    before = len(os.listdir("/proc/self/fd"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (before + cache._OPEN_SHARDS + 30, hard))
    try:
        arrays = [FeatureArray(folder) for _ in range(5)]
        for array in arrays:
            for image_id in range(0, 100, 7):
                assert array.row(image_id).tolist() == [image_id] * 4
        assert len(os.listdir("/proc/self/fd")) <= before + cache._OPEN_SHARDS
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_shard_that_was_read_is_not_opened_again(tmp_path, monkeypatch):
    folder, opened = many_shards(tmp_path / "sam", 3), []
    real = np.load
    monkeypatch.setattr(np, "load", lambda path, **options: opened.append(path) or real(path, **options))
    for array in (FeatureArray(folder), FeatureArray(folder)):
        assert [array.row(i)[0].item() for i in (0, 1, 2, 0)] == [0, 1, 2, 0]
    assert len(opened) == 3


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.EMFILE, "too many files are open; raise `ulimit -n`"), (errno.EIO, "Input/output error")],
)
def test_what_the_system_refuses_is_not_called_damage(tmp_path, monkeypatch, number, message):
    folder = many_shards(tmp_path / "sam", 1)

    def refused(*_, **__):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(np, "load", refused)
    with pytest.raises(OSError, match=message) as caught:
        FeatureArray(folder)
    assert "shard-00000.npy" in str(caught.value) and "delete" not in str(caught.value)


def test_a_shard_that_was_replaced_meanwhile_is_not_mixed_in(tmp_path):
    array = FeatureArray(folder := many_shards(tmp_path / "sam", 1))
    cache._open_shard.cache_clear()
    np.save(folder / "shard-00000.npy", np.zeros((1, 4), np.float64))
    with pytest.raises(ValueError, match=r"shard-00000.npy was replaced while it was read; run again"):
        array.row(0)


def test_a_missing_or_empty_shard_is_damage(tmp_path):
    folder = many_shards(tmp_path / "sam", 1)
    (folder / "shard-00000.npy").write_bytes(b"")
    with pytest.raises(ValueError, match="delete the folder"):
        FeatureArray(folder)
    (folder / "shard-00000.npy").unlink()
    with pytest.raises(ValueError, match="delete the folder"):
        FeatureArray(folder)


def test_an_encoder_that_does_not_give_the_item_is_named(study):
    this = study()
    data = this.plan.data_dir(this.plan.keys(this.run).data)
    model = this.plan.model_source(this.run, "vision")
    with pytest.raises(ValueError, match="'dinov2' gives no levels"):
        feature_stage("levels", this.run, data, model, data / "unused", identity="x")


def test_what_the_dtype_cannot_hold_is_refused_and_not_written(study, monkeypatch):
    """65,520 and more is infinite in float16; bfloat16 holds it."""
    real = cache.ImageEncoder._encode

    def encode(self, image):
        encode.calls += 1
        return real(self, image) * (1e6 if encode.calls > 5 else 1)

    monkeypatch.setattr(cache.ImageEncoder, "_encode", encode)
    held = {"models.features.budget_gb": {"sam": 0}, "data.train_images": 10}
    wanted = r"patches of image \d+ exceeds what float16 holds; set models.features.dtype: bfloat16"
    encode.calls, this = 0, study(changes={**held, "models.features.dtype": "float16"})
    with pytest.raises(ValueError, match=wanted):
        this.features(shard_bytes=3 * 9216)
    folder = this.plan.feature_dir(this.plan.keys(this.run).feature("patches"))
    assert [path.name for path in folder.glob("shard-*")] == ["shard-00000.npy"]
    encode.calls, this = 0, study(changes={**held, "models.features.dtype": "bfloat16"})
    assert FeatureArray(this.features()["patches"])


def test_images_that_are_not_stored_are_refused_too(study, monkeypatch):
    this = study(changes={"models.features.budget_gb": dict.fromkeys(ITEMS, 0), "data.train_images": 11})
    this.features()
    real = cache.ImageEncoder._encode
    monkeypatch.setattr(cache.ImageEncoder, "_encode", lambda *args: real(*args) * torch.nan)
    with pytest.raises(ValueError, match=r"patches of image \d+ is not finite in float16; look at the enc"):
        values(this, this.tables.images["image_id"].tolist()[:1])
