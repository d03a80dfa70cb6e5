"""Every learned projector, in the assembled model, tells eight samples of the default data apart.

The default study's own generator, stages, cached features and Dice loss, at a smaller size: eight images,
6x6 patches, two blocks an encoder, hardly pretrained. All samples share one expression and one embedding
of SAM's, so that only visual tokens say which mask is wanted; the language model stays frozen.
"""

from pathlib import Path

import pandas as pd
import pytest
import torch
from shipped import shipped_projectors

from harness.config.resolve import read_study
from harness.models.losses import dice_loss
from harness.planning.plan import Plan
from harness.running.stages import run_stage
from harness.training.assembly import RunData, build_model
from harness.training.loop import training_step

ROOT = Path(__file__).resolve().parents[2]
STEPS, RATE, SHARE = 192, 1.5e-3, 0.9
LEARNING = ("projector.", "seg_head.", "sam.mask_decoder.")

LEARNED = [name for name, info in shipped_projectors().items() if info.acts_on == "training"]
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
    "training.dice_weight": 2.0,
    **{
        f"training.{what}": 0
        for what in ("bce_weight", "caption_weight", "caption_share", "captioned_places")
    },
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


def overfit(plan, name, shown=None):
    """Dice loss of each step, and what can be had with one mask for all; stops once it is well below that.

    ``shown`` is the sample whose features the projector sees for all.
    """
    run = next(run for run in plan.runs.values() if run.projector == name)
    data = RunData(plan, run)
    train = data.expressions[data.expressions["split"] == "train"]
    groups = [group.head(1) for _, group in train.groupby("image_id", sort=True)]
    groups = [group.assign(sentence=groups[0]["sentence"].iloc[0]) for group in groups]
    images = [int(group["image_id"].iloc[0]) for group in groups]
    assert len(images) == 8
    embedding = data.sam_embeddings(images[:1])
    features = data.features(images if shown is None else [images[shown]] * 8)
    data.sam_embeddings, data.features = lambda *_: embedding.expand(8, -1, -1, -1), lambda *_: features
    model = build_model(plan, run, data.vision_width).train()
    parameters = [p.requires_grad_(n.startswith(LEARNING)) for n, p in model.set_stage(2)]
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    with torch.no_grad():
        packed = model.pack(model.visual_tokens(features), [group["sentence"].tolist() for group in groups])
        model.start_seg_head(model.hidden(packed)[packed.seg_row, packed.seg_column].float())
    optimizer = torch.optim.AdamW(parameters, lr=RATE, betas=(0.9, 0.99), weight_decay=0.0)
    blind = blind_dice(data.targets(pd.concat(groups), model.sam.image_encoder.img_size)[0])
    losses = []
    for step in range(STEPS):
        optimizer.param_groups[0]["lr"] = RATE * (1 - step / STEPS)
        optimizer.zero_grad(set_to_none=True)
        losses.append(training_step(model, data, groups, run, 2, step)["dice"])
        if losses[-1] < SHARE * blind:
            break
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
    return losses, blind


@pytest.mark.parametrize("name", LEARNED)
def test_eight_samples_are_told_apart_by_their_tokens(plan, name, record_property):
    losses, blind = overfit(plan, name)
    record_property(
        "dice_loss", f"{losses[0]:.3f} to {losses[-1]:.3f} in {len(losses)} steps, blind {blind:.3f}"
    )
    assert losses[-1] < SHARE * blind < losses[0]


def test_tokens_that_are_the_same_for_all_samples_fail(plan):
    losses, blind = overfit(plan, "global_token", shown=0)
    assert len(losses) == STEPS and min(losses) > 0.97 * blind
