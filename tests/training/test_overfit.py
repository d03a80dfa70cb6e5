"""Every learned projector, in the assembled model, overfits eight samples of the default data.

The default study's own generator, stages, cached features and losses, at a smaller size: one expression
for each of eight images, 6x6 patches, two blocks an encoder, hardly pretrained.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.assembly import RunData, build_model
from harness.discovery import find_projectors
from harness.models.losses import dice_loss
from harness.plan import Plan
from harness.stages import run_stage
from harness.study import read_study
from harness.training import training_step

ROOT = Path(__file__).resolve().parents[2]
STEPS, RATE, SHARE = 32, 2e-3, 0.6

LEARNED = [name for name, info in find_projectors().items() if info.acts_on == "training"]
SETTINGS = {
    **{f"data.{name}_images": 8 for name in ("train", "val", "testA", "testB", "test")},
    "data.pool_images": 16,
    "models.vision.patch_size": 16,
    "models.vision.levels": [1, 1, 2, 2],
    **{f"models.pretrain.{part}_{what}": n for part in ("vision", "language") for what, n in (("steps", 4),)},
    **{f"models.pretrain.{part}_depth": 2 for part in ("vision", "language", "sam")},
    "models.start": None,
    "models.pretrain.sam_dense_steps": 1,
    "models.pretrain.sam_steps": 1,
    "models.pretrain.batch": 4,
    "superpixels.options.segments": 6,
    "training.balanced_until": 1.0,
    "training.dice_weight": 2.0,
}


@pytest.fixture(scope="module")
def plan(tmp_path_factory):
    rows = [
        {"name": name, "config": {"layer": 1, "in_training": True} if name == "fastv" else {}}
        for name in LEARNED
    ]
    raw = {**read_study(ROOT / "config/default.yaml", ROOT), "rows": rows, "superpixels": "slic"}
    raw |= {"set": SETTINGS, "results": "results"}
    made = Plan.from_raw(raw, ROOT)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("study"))
        made.save(made.config_file)
        for stage, key in made.shared_stages:
            run_stage(stage, made.config_file, key=key)
        yield made


def blind_dice(targets):
    """Dice loss of the best single mask for all samples: what can be had without telling them apart."""
    logits = targets.mean(0, keepdim=True).logit(1e-2).requires_grad_()
    optimizer = torch.optim.Adam([logits], lr=0.3)
    for _ in range(100):
        optimizer.zero_grad()
        loss = dice_loss(logits.expand_as(targets), targets)
        loss.backward()
        optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", LEARNED)
def test_eight_samples_are_overfitted(plan, name, record_property):
    run = next(run for run in plan.runs.values() if run.projector == name)
    data = RunData(plan, run)
    train = data.expressions[data.expressions["split"] == "train"]
    groups = [group.head(1) for _, group in train.groupby("image_id", sort=True)]
    assert len(groups) == 8
    model = build_model(plan, run, data.vision_width).train()
    parameters = [parameter for _, parameter in model.set_stage(2)]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad(set_to_none=True)
        parts = training_step(model, data, groups, run, 2, step)
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        losses.append(parts["dice"])
    blind = blind_dice(data.targets(pd.concat(groups), model.sam.image_encoder.img_size)[0])
    record_property("dice_loss", f"{losses[0]:.3f} to {losses[-1]:.3f}, one mask for all {blind:.3f}")
    assert losses[-1] < SHARE * blind < losses[0]
