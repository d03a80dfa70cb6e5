"""What is trained once: rows that studies share, and rows of one study that differ in name alone.

A study and its ablations hold the same rows (``svp``, ``mlp``, …), and on a cluster each costs hours. A
finished stage is kept under ``results/shared/trained/``, by the hash of all that its weights hang on: the
run's values, its code, and what the manifests of its data, models, features and superpixels say. Another
study takes it from there, and so does a row of the same study, which waits for it (:func:`twin_weights`).
"""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path

from harness.config import RunConfig
from harness.files import atomic_path, digest, file_stamp, sha256_file
from harness.planning.plan import Plan
from harness.planning.triggers import checkpoint_trigger

__all__ = ["keep_trained", "take_trained", "trained_dir", "twin_weights"]

_WEIGHTS, _LOG = "weights.safetensors", "log.jsonl"


def trained_dir(plan: Plan, run: RunConfig, stage: int) -> Path:
    """Where a finished stage of a run is kept; its inputs must be there."""
    inputs = [_mark(path, plan.shared) for path in plan.run_inputs(run)]
    key = digest([checkpoint_trigger(plan, run, stage), inputs])
    return plan.shared / "trained" / f"{run.projector}-stage{stage}-{key}"


def _mark(path: Path, ours: Path) -> str | list[str | int]:
    """What tells a file from another: its content, or of weights from elsewhere, gigabytes, size and time."""
    if path.is_relative_to(ours):
        return sha256_file(path)
    return file_stamp(path)


def twin_weights(plan: Plan, run: RunConfig, stage: int) -> list[Path]:
    """The weights that a run waits for and takes: those of the first run that it equals up to ``stage``.

    None where it is the first itself, or shares nothing. At tiny size a row for other published weights may
    be another row under another name.
    """
    if not plan.study.share_runs:
        return []
    own = checkpoint_trigger(plan, run, stage)
    for other in plan.siblings(run):
        if other.id == run.id:
            break
        if checkpoint_trigger(plan, other, stage) == own:
            return [plan.weights(other.id, stage)]
    return []


def take_trained(plan: Plan, run: RunConfig, stage: int) -> bool:
    """Copy weights and log of a stage that was finished before; whether there were any.

    Raises:
        ValueError: what is kept cannot be read.
    """
    kept = trained_dir(plan, run, stage)
    if not plan.study.share_runs or not (kept / _WEIGHTS).is_file():
        return False
    from harness.tensors import load_tensors

    load_tensors(kept / _WEIGHTS, f"delete {kept} to train it again")
    # Copies: a link would carry the first run's time stamp, and Snakemake goes by time stamps.
    for source, target in ((_LOG, plan.log_file(run.id)), (_WEIGHTS, plan.weights(run.id, stage))):
        with atomic_path(target) as aside:
            shutil.copyfile(kept / source, aside)
    sys.stderr.write(f"{run.id} stage {stage}: taken from {kept}, where it was trained before\n")
    return True


def keep_trained(plan: Plan, run: RunConfig, stage: int) -> None:
    """Keep what a stage has just written, for other studies and for twins."""
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
