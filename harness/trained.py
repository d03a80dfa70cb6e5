"""Runs that studies share: what one has trained, another takes in place of training it again.

A study and its ablations hold the same rows (``svp``, ``mlp``, …), and on a cluster each costs hours. A
finished stage is kept under ``results/shared/trained/``, by the hash of all that its weights hang on: the
run's values, its code, and what the manifests of its data, models, features and superpixels say.
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from harness.config import RunConfig
from harness.files import atomic_path, digest, sha256_file
from harness.plan import Plan
from harness.triggers import checkpoint_trigger

__all__ = ["keep_trained", "take_trained", "trained_dir"]

_WEIGHTS, _LOG = "weights.safetensors", "log.jsonl"


def trained_dir(plan: Plan, run: RunConfig, stage: int) -> Path:
    """Where a finished stage of a run is kept; its inputs must be there."""
    inputs = [sha256_file(path) for path in plan.run_inputs(run)]
    key = digest([checkpoint_trigger(plan, run, stage), inputs])
    return plan.shared / "trained" / f"{run.id}-stage{stage}-{key}"


def take_trained(plan: Plan, run: RunConfig, stage: int) -> bool:
    """Copy weights and log of a stage that some study has finished; whether there were any.

    Raises:
        ValueError: what is kept cannot be read.
    """
    kept = trained_dir(plan, run, stage)
    if not plan.study.share_runs or not (kept / _WEIGHTS).is_file():
        return False
    from harness.tensors import load_tensors

    load_tensors(kept / _WEIGHTS, f"delete {kept} to train it again")
    # Copies: a link would carry the first study's time stamp, and Snakemake goes by time stamps.
    for source, target in ((_LOG, plan.log_file(run.id)), (_WEIGHTS, plan.weights(run.id, stage))):
        with atomic_path(target) as aside:
            shutil.copyfile(kept / source, aside)
    sys.stderr.write(f"{run.id} stage {stage}: taken from {kept}, where another study left it\n")
    return True


def keep_trained(plan: Plan, run: RunConfig, stage: int) -> None:
    """Keep what a stage has just written, for other studies."""
    if not plan.study.share_runs:
        return
    kept = trained_dir(plan, run, stage)
    # the weights last: they say that the rest is there
    for source, name in ((plan.log_file(run.id), _LOG), (plan.weights(run.id, stage), _WEIGHTS)):
        with atomic_path(kept / name) as aside:
            if name == _WEIGHTS:
                _link(source, aside)
            else:
                shutil.copyfile(source, aside)


def _link(source: Path, target: Path) -> None:
    """One file under two names: with a 7B model it is a gigabyte."""
    target.unlink()
    try:
        os.link(source, target)
    except OSError:  # another file system, or one without links
        shutil.copyfile(source, target)
