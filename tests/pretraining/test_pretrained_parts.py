"""The pretrained parts on a few scenes: what they hold, and that the start goes on from the others."""

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from transformers import AutoTokenizer, LlamaForCausalLM

from harness.models.sam import load_sam, region_embeddings
from harness.planning.plan import Plan
from harness.pretraining.models import pretrain
from harness.pretraining.pool import Pool
from harness.tensors import load_tensors

ROOT = Path(__file__).parents[2]
STEPS = {
    "language_steps": 40,
    "language_depth": 1,
    "sam_dense_steps": 30,
    "sam_steps": 30,
    "sam_depth": 1,
    "sam_prompt_width": 32,
    "start_steps": 30,
    "start_images": 4,
}


@pytest.fixture(scope="module")
def plan():
    raw = yaml.safe_load((ROOT / "config/default.yaml").read_text())
    smoke = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    changes = {f"models.pretrain.{k}": v for k, v in STEPS.items()}
    return Plan.from_raw({**raw, **smoke, "set": {**smoke["set"], **changes}}, ROOT)


@pytest.fixture(scope="module")
def parts(plan, tmp_path_factory):
    from harness.data.synthetic import generate_pool

    root = tmp_path_factory.mktemp("parts")
    run = next(iter(plan.runs.values()))
    generate_pool(plan.keys(run).pool_options, root / "data")
    folders = {part: root / part for part in ("language", "sam", "start")}
    for part, folder in folders.items():
        pretrain(part, run, root / "data" / "pool", folder, folders)
    return root, folders


def test_the_mean_under_a_mask_is_the_mask_s_own():
    embeddings = torch.arange(32.0).reshape(1, 2, 4, 4)
    mask = torch.zeros(1, 1, 8, 8)
    mask[0, 0, :2, :4] = 1  # cells (0, 0) and (0, 1)
    mask[0, 0, 2, 0:2] = 1  # half of cell (1, 0)
    expected = (np.array([0, 16]) + np.array([1, 17]) + 0.5 * np.array([4, 20])) / 2.5
    np.testing.assert_allclose(region_embeddings(embeddings, mask)[0, 0], expected, rtol=1e-6)


def test_regions_are_objects_and_an_object_is_found_by_its_id(parts):
    pool = Pool(parts[0] / "data" / "pool")
    frame = pool.annotations[int(pool.images["image_id"][0])]
    objects = {pool.object_mask(0, int(a)).tobytes() for a in frame["ann_id"]}
    drawn = {mask.tobytes() for mask in pool.regions(0, 40, np.random.default_rng(0))}
    assert len(objects) == len(frame) and drawn == objects


def test_the_start_holds_a_head_and_a_decoder_that_fit_and_moved(parts):
    _, folders = parts
    tensors = load_tensors(folders["start"] / "start.safetensors", "")
    decoder = load_sam(folders["sam"]).mask_decoder.state_dict()
    learnt = {k.removeprefix("mask_decoder."): v for k, v in tensors.items() if k.startswith("mask_decoder.")}
    assert {k: v.shape for k, v in learnt.items()} == {k: v.shape for k, v in decoder.items()}
    assert not torch.equal(learnt["mask_tokens.weight"], decoder["mask_tokens.weight"])
    before, after = (LlamaForCausalLM.from_pretrained(folders[p]) for p in ("language", "start"))
    assert tensors["seg_head.0.weight"].shape == (after.config.hidden_size,) * 2
    assert tensors["seg_head.2.weight"].shape == (STEPS["sam_prompt_width"], after.config.hidden_size)
    moved = [not torch.equal(a, b) for a, b in zip(before.parameters(), after.parameters(), strict=True)]
    assert all(moved)
    vocabularies = [AutoTokenizer.from_pretrained(folders[p]).get_vocab() for p in ("language", "start")]
    assert vocabularies[0] == vocabularies[1]


def test_the_same_seed_writes_the_same_start(parts, plan, tmp_path):
    root, folders = parts
    pretrain("start", next(iter(plan.runs.values())), root / "data" / "pool", tmp_path, folders)
    for name in ("start.safetensors", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (folders["start"] / name).read_bytes()


def test_a_run_starts_from_the_pretrained_part(plan):
    run = next(iter(plan.runs.values()))
    assert plan.start_file(run).parent == plan.model_dir(plan.keys(run).model("start"))
    assert plan.model_source(run, "language") == str(plan.start_file(run).parent)
    wanted = {str(p) for p in plan.pretrain_inputs(plan.keys(run).model("start"))}
    for part in ("language", "sam"):
        assert str(plan.model_dir(plan.keys(run).model(part)) / "done.json") in wanted
