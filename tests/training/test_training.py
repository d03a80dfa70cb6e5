"""Training: what a step sees, the schedule, checkpoints, and the small losses of the recipe."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from torch import nn

from harness.config import TrainingConfig
from harness.models.losses import bce_loss
from harness.seeds import forked_rng, seed_of
from harness.training.loop import Sampler, _Checkpoint, _Log, learning_rate

CONFIG = TrainingConfig(stage1_steps=100, stage2_steps=300, images_per_step=6, expressions_per_image=2)


def expressions():
    rows = []
    for dataset, images in (("big", 50), ("small", 2)):
        for image in range(images):
            rows += [(dataset, "train", image, f"{dataset} {image} {s}") for s in range(3)]
        rows.append((dataset, "val", 999, "held out"))
    return pd.DataFrame(rows, columns=["dataset", "split", "image_id", "sentence"])


def seen(sampler, stage, step):
    return [tuple(g["sentence"]) for g in sampler.rows(stage, step)]


def test_a_step_hangs_on_seed_stage_and_step_alone():
    first, again = Sampler(expressions(), CONFIG, 0), Sampler(expressions(), CONFIG, 0)
    first.rows(1, 0)
    assert seen(first, 1, 7) == seen(again, 1, 7)
    assert seen(first, 1, 7) != seen(first, 2, 7)
    assert seen(first, 1, 7) != seen(Sampler(expressions(), CONFIG, 1), 1, 7)


def test_datasets_are_equally_likely_and_held_out_images_never_seen():
    sampler = Sampler(expressions(), CONFIG, 0)
    groups = [g for step in range(200) for g in sampler.rows(1, step)]
    share = np.mean([g["dataset"].iloc[0] == "small" for g in groups])
    assert 0.45 < share < 0.55  # 2 of 52 images, half of the draws
    assert all((g["split"] == "train").all() and g["image_id"].nunique() == 1 for g in groups)
    assert all(len(g) == 2 and g["sentence"].is_unique for g in groups)


def test_no_train_split_is_an_error_that_says_so():
    with pytest.raises(ValueError, match="no train split"):
        Sampler(expressions().query("split == 'val'"), CONFIG, 0)


def test_warm_up_then_linear_to_zero():
    config = CONFIG.model_copy(update={"learning_rate": 1.0, "warmup_steps": 10})
    rates = [learning_rate(s, 110, config) for s in range(110)]
    assert rates[:10] == pytest.approx([(s + 1) / 10 for s in range(10)])
    assert rates[10:] == pytest.approx([(110 - s) / 100 for s in range(10, 110)])


def test_bce_weighs_every_pixel_alike_but_padding():
    logits = torch.tensor([[[2.0, -1.0, 0.5, -3.0]]])
    target = torch.tensor([[[1.0, 0.0, 0.0, 0.0]]])

    def term(x, t):
        p = 1 / (1 + math.exp(-x))
        return -(t * math.log(p) + (1 - t) * math.log(1 - p))

    each = [term(x, t) for x, t in zip((2.0, -1.0, 0.5, -3.0), (1, 0, 0, 0), strict=True)]
    assert bce_loss(logits, target).item() == pytest.approx(np.mean(each), rel=1e-5)
    valid = torch.tensor([[[True, True, True, False]]])
    assert bce_loss(logits, target, valid).item() == pytest.approx(np.mean(each[:3]), rel=1e-5)


class Toy(nn.Module):
    """Enough of a model for a checkpoint."""

    def __init__(self):
        super().__init__()
        with forked_rng("toy"):
            self.layer = nn.Linear(3, 2)

    def trained_state(self):
        return {n: p.detach() for n, p in self.named_parameters()}

    def load_trained(self, state, source):
        self.load_state_dict(state)


def train(model, optimizer, first, last):
    for step in range(first, last):
        x = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model.layer(x).square().mean().backward()
        optimizer.step()


def optimizer_of(model):
    return torch.optim.AdamW(model.parameters(), lr=0.05)


def test_resuming_gives_the_weights_of_an_uninterrupted_run(tmp_path):
    whole = Toy()
    train(whole, optimizer_of(whole), 0, 20)
    killed = Toy()
    optimizer = optimizer_of(killed)
    train(killed, optimizer, 0, 9)
    _Checkpoint(tmp_path, 1).save(killed, optimizer, list(killed.named_parameters()), 9)
    train(killed, optimizer, 9, 13)  # lost with the process
    again = Toy()
    fresh = optimizer_of(again)
    assert _Checkpoint(tmp_path, 1).load(again, fresh, list(again.named_parameters())) == 9
    train(again, fresh, 9, 20)
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), again.parameters(), strict=True))


def test_no_checkpoint_starts_at_zero_and_a_cut_one_is_refused(tmp_path):
    model = Toy()
    optimizer, named = optimizer_of(model), list(model.named_parameters())
    checkpoint = _Checkpoint(tmp_path, 2)
    assert checkpoint.load(model, optimizer, named) == 0
    train(model, optimizer, 0, 1)
    checkpoint.save(model, optimizer, named, 1)
    whole = checkpoint.path.read_bytes()
    checkpoint.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"stage2.checkpoint.safetensors cannot be read .* delete it"):
        checkpoint.load(model, optimizer, named)


def test_the_log_drops_what_a_resumed_run_will_write_again(tmp_path):
    path = tmp_path / "log.jsonl"
    lines = [(1, 20), (1, 40), (2, 20), (2, 40), (2, 60)]
    path.write_text("".join(json.dumps({"stage": s, "step": n, "loss": 1.0}) + "\n" for s, n in lines))
    _Log(path, 2, 40)
    read = [json.loads(line) for line in path.read_text().splitlines()]
    kept = [(v["stage"], v["step"]) for v in read if "loss" in v]
    assert kept == lines[:4]
    told = {"stage": 2, "step": 40, "event": "resumed"}
    assert told.items() <= read[-1].items() and {"commit", "uncommitted_changes"} <= set(read[-1])
    _Log(path, 1, 0)
    (only,) = (json.loads(line) for line in path.read_text().splitlines())
    assert (only["stage"], only["step"], only["event"]) == (1, 0, "started")


def test_a_log_whose_last_line_was_cut_off_is_gone_on_with(tmp_path):
    path = tmp_path / "log.jsonl"
    whole = [json.dumps({"stage": 1, "step": step, "loss": 1.0}) + "\n" for step in (20, 40, 60)]
    path.write_text("".join(whole)[:-15])  # a full disk
    _Log(path, 1, 40).write({"step": 60})
    steps = [json.loads(line)["step"] for line in path.read_text().splitlines()]
    assert steps == [20, 40, 40, 60]  # the third line tells of the resumption
    path.write_text(whole[0] + whole[1][:10] + "\n" + whole[2])
    with pytest.raises(ValueError, match=r"log.jsonl, line 2 cannot be read .*; delete that line to go on"):
        _Log(path, 1, 60)


def test_seeds_come_from_names_and_leave_the_global_state_alone():
    # printf 'order/0/1/7' | sha256sum: the first 8 bytes, less the lowest bit
    assert seed_of("order", 0, 1, 7) == 0x2E22BB2C87CA2AF5 >> 1
    before = torch.get_rng_state()
    with forked_rng("dropout", 0):
        torch.rand(3)
    assert torch.equal(before, torch.get_rng_state())
