"""The real stages on a very small study: run, run again, and killed in training."""

import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import psutil
import pytest
import yaml
from checkout import ROOT, Checkout

pytestmark = pytest.mark.workflow
KILL_WITHIN_S = 1500


def study(name: str) -> str:
    """The smoke study with one row, and enough steps to be killed between two checkpoints."""
    value = yaml.safe_load((ROOT / "config/studies/smoke.yaml").read_text())
    # not shared: the killed study would take the unbroken one's run
    value |= {"study": name, "rows": ["mlp"], "share_runs": False}
    value["set"] |= {"training.stage1_steps": 24, "training.stage2_steps": 4, "training.checkpoint_every": 2}
    return yaml.safe_dump(value)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    made = Checkout.at(tmp_path_factory.mktemp("real") / "repo")
    for name in ("unbroken", "killed"):
        (made.path / f"config/studies/{name}.yaml").write_text(study(name))
    done = made.run("harness.cli", "run", "config/studies/unbroken.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    return made


def test_a_study_ends_in_tables_figures_and_a_store(checkout):
    folder = checkout.path / "results/unbroken"
    scores = pd.read_csv(folder / "tables/scores.csv")
    expressions = pd.read_parquet(
        next((checkout.path / "results/shared/data").glob("*/prepared/expressions.parquet"))
    )
    held_out = expressions[expressions["split"] != "train"]
    assert set(zip(scores["dataset"], scores["split"], strict=True)) == set(
        zip(held_out["dataset"], held_out["split"], strict=True)
    )
    assert scores["n_expressions"].sum() == len(held_out)
    assert set(scores["tokens_mean"]) == {144}
    assert scores["giou"].between(0, 1).all()
    assert (folder / "figures/overlays.png").stat().st_size > 10_000
    assert (checkout.path / "results/mlflow.db").is_file()


def test_what_is_finished_is_not_done_again(checkout):
    done = checkout.run("harness.cli", "run", "config/studies/unbroken.yaml")
    assert done.returncode == 0
    assert "Nothing to be done" in done.stdout + done.stderr
    assert "| " in done.stdout


def test_killed_in_training_and_started_again_gives_the_same_bytes(checkout):
    words = [sys.executable, "-m", "harness.cli", "run", "config/studies/killed.yaml"]
    log = (checkout.path / "killed.txt").open("w")
    running = subprocess.Popen(words, cwd=checkout.path, env=checkout.environment(), stdout=log, stderr=log)
    started = time.monotonic()
    while not list((checkout.path / "results").glob("*/checkpoints/mlp*/stage1.checkpoint.safetensors")):
        assert running.poll() is None and time.monotonic() - started < KILL_WITHIN_S
        time.sleep(0.01)
    for process in [psutil.Process(running.pid), *psutil.Process(running.pid).children(recursive=True)]:
        try:
            os.kill(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    running.wait()
    folder = checkout.path / "results/killed"
    assert not (folder / "runs/mlp.base.auto.s0/stage1.safetensors").exists()

    done = checkout.run("harness.cli", "run", "config/studies/killed.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "lifting the lock" in done.stderr
    lines = [
        json.loads(line) for line in (folder / "runs/mlp.base.auto.s0/log.jsonl").read_text().splitlines()
    ]
    assert [line["step"] > 0 for line in lines if line.get("event") == "resumed"] == [True]
    unbroken = checkout.path / "results/unbroken"
    name = "tables/scores.csv"
    assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    name = "runs/mlp.base.auto.s0/stage2.safetensors"
    assert (folder / name).read_bytes() == (unbroken / name).read_bytes()
    assert not list((checkout.path / "results").glob("*/checkpoints/mlp*"))
