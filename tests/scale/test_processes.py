"""One step's images in one pass or several, one process or two, weights whole or in shares: one curve.

And one table of predictions, however many processes made it.
"""

import json
import os
import re
import shutil
import socket
import sys
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
import torch
from accelerate import PartialState
from safetensors.torch import load_file
from torch import distributed, multiprocessing
from torch.distributed.tensor import DTensor

from harness import prediction
from harness.parallel import Workers
from harness.planning.plan import Plan
from harness.prediction import predict_stage
from harness.running import processes
from harness.running.processes import launch
from harness.running.stages import run_stage
from harness.training import loop
from harness.training import trained as trained_runs
from harness.training.diverged import is_diverged
from harness.training.loop import train_stage

ROOT = Path(__file__).resolve().parents[2]
# Dropout on, and expressions that are not shared out evenly: both must hang on the pass alone.
CHANGES = {"models.language.lora_dropout": 0.2, "training.images_per_forward": 2}


def named(study, name, rows=("mlp",), **changes):
    """A study under results of its own, its features written."""
    this = study(rows, {**CHANGES, **changes})
    this.plan.study = this.plan.study.model_copy(update={"study": name})
    this.features()
    return this


def trained(study, name, rows=("mlp",), stages=(1, 2), **changes):
    """Losses of every step and the trained tensors of a run."""
    this = named(study, name, rows, **changes)
    for stage in stages:
        train_stage(this.plan, this.run, stage)
    return read(this, stages[-1])


def read(this, stage=2):
    lines = [json.loads(line) for line in this.plan.log_file(this.run.id).read_text().splitlines()]
    losses = [line["loss"] for line in lines if "loss" in line]
    return losses, load_file(this.plan.weights(this.run.id, stage))


def join(rank, port):
    """Be one of two processes, as torchrun would start it; forked, to save the minutes of imports."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    PartialState._reset_state()


def process(rank, port, plan, run):
    join(rank, port)
    step = loop.training_step

    def checked(model, *args):
        held = {n: p for n, p in model.language.named_parameters() if isinstance(p, DTensor)}
        assert bool(held) == (run.training.strategy == "fsdp")
        assert not any(p.requires_grad for p in held.values())
        assert all(2 * p.to_local().numel() == p.numel() for p in held.values())
        return step(model, *args)

    loop.training_step = checked
    for stage in (1, 2):
        train_stage(plan, run, stage)
    distributed.destroy_process_group()


def predicting(rank, port, plan, run, folder):
    """One of two that predict; tells which images it saw."""
    join(rank, port)
    predict, seen = prediction.predict_batch, []

    def watched(model, data, groups, *args):
        seen.extend([*map(str, g.iloc[0][["dataset", "split", "image_id"]])] for g in groups)
        return predict(model, data, groups, *args)

    prediction.predict_batch = watched
    predict_stage(plan, run)
    (folder / f"{rank}.json").write_text(json.dumps(seen))
    distributed.destroy_process_group()


def free_port():
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        return sock.getsockname()[1]


@pytest.fixture(scope="module")
def alone():
    return {}


def one_process(study, alone):
    if not alone:
        alone["curve"], alone["weights"] = trained(study, "alone")
    return alone["curve"], alone["weights"]


def close(one, other, tolerance=2e-4):
    assert one.keys() == other.keys()
    return all(torch.allclose(one[k].float(), other[k].float(), atol=tolerance) for k in one)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_give_the_curve_of_one(study, alone, strategy):
    curve, weights = one_process(study, alone)
    changes = {"training.processes": 2, "training.strategy": strategy}
    this = named(study, strategy, **changes)
    arguments = (free_port(), this.plan, this.run)
    multiprocessing.start_processes(process, arguments, nprocs=2, start_method="fork")
    two, shared = read(this)
    assert len(curve) == 6 and two == pytest.approx(curve, rel=1e-4)
    assert close(weights, shared)


def test_tokens_dropped_between_layers_pass_through_a_model_in_shares(study):
    rows = [{"name": "fastv", "config": {"layer": 1, "in_training": True}}, "mlp"]
    curve, weights = trained(study, "dropping", rows)
    this = named(study, "dropping_fsdp", rows, **{"training.processes": 2, "training.strategy": "fsdp"})
    arguments = (free_port(), this.plan, this.run)
    multiprocessing.start_processes(process, arguments, nprocs=2, start_method="fork")
    two, shared = read(this)
    assert len(curve) == 6 and two == pytest.approx(curve, rel=1e-4)
    assert close(weights, shared)


def test_two_processes_predict_every_expression_once(study, monkeypatch, tmp_path):
    """Three images a batch, so that the last batch is not full and the shares are uneven."""
    monkeypatch.setattr(prediction, "image_batches", partial(prediction.image_batches, size=3))
    this = named(
        study, "predicted", ("mlp", *({"name": f"{what}_blind", "of": "mlp"} for what in ("text", "image")))
    )
    for stage in (1, 2):
        train_stage(this.plan, this.run, stage)
    for run in this.plan.runs.values():
        predict_stage(this.plan, run)
        table = this.plan.prediction_file(run.id)
        alone = pd.read_parquet(table)
        table.unlink()
        arguments = (free_port(), this.plan, run, tmp_path)
        multiprocessing.start_processes(predicting, arguments, nprocs=2, start_method="fork")
        pd.testing.assert_frame_equal(pd.read_parquet(table), alone)
        assert not alone.duplicated(["dataset", "split", "sent_id"]).any()
        first, second = ({*map(tuple, json.loads((tmp_path / f"{k}.json").read_text()))} for k in (0, 1))
        images = alone.astype({"image_id": str})[["dataset", "split", "image_id"]]
        assert first and second and not first & second
        assert first | second == {*images.itertuples(index=False, name=None)}


def test_the_launcher_starts_them(study):
    this = named(study, "launched", **{"training.processes": 2, "training.stage1_steps": 1})
    this.plan.save(this.plan.config_file)
    this.plan.weights(this.run.id).parent.mkdir(parents=True)
    launch(this.plan.config_file, this.run.id, "stage1", 2)
    losses, tensors = read(this, 1)
    assert len(losses) == 1 and tensors


def test_a_trial_that_diverges_in_several_processes_leaves_a_marker(study):
    this = named(study, "diverging", **{"training.processes": 2, "training.learning_rate": 1e30})
    this.raw |= {"study": "diverging", "tuning": {"factors": [0.5, 1], "steps": 1, "held_out_images": 2}}
    plan = Plan.from_raw(this.raw, ROOT)
    plan.save(plan.config_file)
    trial = next(iter(plan.trials[this.run.row]))
    launch(plan.config_file, trial, "stage1", 2)
    assert is_diverged(plan.weights(trial, 1))


@pytest.mark.parametrize(("job", "stage"), [("predict", None), ("stage1", 1), ("stage2", 2)])
def test_each_job_is_what_the_launched_processes_do(study, monkeypatch, job, stage):
    this, called = named(study, "named"), []
    this.plan.save(this.plan.config_file)
    monkeypatch.setattr(processes, "train_stage", lambda plan, run, stage: called.append((run.id, stage)))
    monkeypatch.setattr(processes, "predict_stage", lambda plan, run: called.append((run.id, None)))
    processes._main(str(this.plan.config_file), this.run.id, job)
    assert called == [(this.run.id, stage)]


def test_the_launcher_tells_of_failure_and_of_missing_gpus(tmp_path, monkeypatch):
    with (
        monkeypatch.context() as broken,
        pytest.raises(ValueError, match="one of 2 processes failed in stage1"),
    ):
        broken.setattr(sys, "executable", shutil.which("false"))
        launch(tmp_path / "missing.json", "mlp", "stage1", 2)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a driver too old for this torch
    with pytest.raises(ValueError, match=r"torch .* finds no GPU that it can use"):
        launch(tmp_path / "missing.json", "mlp", "predict", 2, gpu=True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for gpu in (False, True):
        with pytest.raises(ValueError, match="this machine has 2 GPUs; set it to 2"):
            launch(tmp_path / "missing.json", "mlp", "predict", 8, gpu=gpu)


@pytest.mark.parametrize("job", ["features", "superpixels", "train", "tune", "predict", "efficiency"])
@pytest.mark.parametrize("workers", [1, 2])
def test_a_job_that_asks_for_a_gpu_does_not_go_on_without_one(study, monkeypatch, tmp_path, job, workers):
    """Before it looks at its inputs, none of which are there."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")  # else this process takes cards of its own
    monkeypatch.setattr(trained_runs, "take_trained", lambda *_: False)  # a run to take needs no GPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    changes = {"models.gpu": True, "training.processes": workers, "training.images_per_forward": 2}
    this = study(["svp"], changes)
    this.raw |= {"results": str(tmp_path), "tuning": {"factors": [0.5, 1]}}
    plan = Plan.from_raw(this.raw, ROOT)
    plan.save(plan.config_file)
    run, keys = plan.trained[0], plan.keys(plan.trained[0])
    named = {
        "features": {"key": keys.feature("sam")},
        "superpixels": {"key": keys.superpixels},
        "train": {"run": next(iter(plan.trials[run.row])), "stage": 1},
        "tune": {"run": run.row},
        "predict": {"run": run.id},
        "efficiency": {},
    }[job]
    build = re.escape(torch.__version__)
    with pytest.raises(ValueError, match=rf"torch {build} \(.*\) finds no GPU .* `svp doctor STUDY`"):
        run_stage(job, plan.config_file, **named)


def test_gradient_checkpointing_changes_no_number(study, alone):
    curve, weights = one_process(study, alone)
    again, same = trained(study, "checkpointing", **{"training.gradient_checkpointing": True})
    assert again == pytest.approx(curve, rel=1e-5)
    assert close(weights, same, 1e-5)


def test_images_in_one_pass_or_two_give_the_same_curve_without_dropout(study):
    off = {"models.language.lora_dropout": 0.0}
    together, whole = trained(study, "whole", **off, **{"training.images_per_forward": 4})
    accumulated, parts = trained(study, "parts", **off, **{"training.images_per_forward": 1})
    assert accumulated == pytest.approx(together, rel=1e-4)
    assert close(whole, parts)


@pytest.mark.parametrize("rows", [("mlp",), ("m3",)])
def test_a_killed_run_goes_on_to_the_same_bits(study, monkeypatch, rows):
    """Killed in the second step after a checkpoint; M3 has several budgets a step."""
    changes = {"training.stage1_steps": 5, "training.checkpoint_every": 2}
    curve, weights = trained(study, "uninterrupted", rows, (1,), **changes)
    real, made = loop.training_step, []

    def killed(*args, **kwargs):
        made.append(args[5])
        if len(made) == 4:
            raise KeyboardInterrupt
        return real(*args, **kwargs)

    monkeypatch.setattr(loop, "training_step", killed)
    with pytest.raises(KeyboardInterrupt):
        trained(study, "killed", rows, (1,), **changes)
    again, same = trained(study, "killed", rows, (1,), **changes)
    assert made[4:] == [2, 3, 4]
    assert again == curve
    assert all(torch.equal(weights[k], same[k]) for k in weights)


def test_what_learns_is_of_full_precision_and_all_that_a_file_holds(study):
    losses, tensors = trained(study, "half", **{"training.dtype": "bfloat16"})
    assert {t.dtype for t in tensors.values()} == {torch.float32}
    assert all(torch.isfinite(torch.tensor(losses)))
    learnt = ("projector.", "seg_head.", "sam.mask_decoder.")
    rest = [name for name in tensors if not name.startswith(learnt) and "lora_" not in name]
    assert rest == ["language.lm_head.weight", "language.model.embed_tokens.weight"]


def test_alone_nothing_is_shared_out():
    workers = Workers()
    assert (workers.rank, workers.count, workers.is_main) == (0, 1, True)
    assert workers.own(["a", "b"]) == [(0, "a"), (1, "b")]
    assert workers.sum_values({"x": 1.5}) == {"x": 1.5}
