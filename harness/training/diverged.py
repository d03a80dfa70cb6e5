"""Trials of the learning-rate search that diverged: what a rate does is a finding, not a fault.

Such a trial leaves a marker where its weights would stand, so that the search goes on with the others.
"""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from harness.config import RunConfig
from harness.planning.plan import Plan
from harness.planning.triggers import checkpoint_dir
from harness.tensors import save_tensors

__all__ = ["divergence_marked", "is_diverged", "mark_diverged"]

_NAME = "diverged"


def is_diverged(weights: Path) -> bool:
    """Whether a file of weights is a marker; one that is not there, or damaged, is none."""
    if not weights.is_file():
        return False
    try:
        with safe_open(weights, framework="pt") as stream:
            return list(stream.keys()) == [_NAME]
    except SafetensorError:
        return False


def mark_diverged(plan: Plan, trial: RunConfig, stage: int) -> None:
    """Write a marker in place of a trial's weights, and drop its checkpoints."""
    save_tensors(plan.weights(trial.id, stage), {_NAME: torch.ones(1)})
    shutil.rmtree(checkpoint_dir(plan, trial), ignore_errors=True)


@contextmanager
def divergence_marked(plan: Plan, run: RunConfig, stage: int) -> Iterator[None]:
    """Mark a trial whose loss is no longer finite; any other run fails of it.

    Of several processes all see the same loss, and the first writes the marker.

    Raises:
        FloatingPointError: the loss of a run that is no trial is not finite.
    """
    try:
        yield
    except FloatingPointError as error:
        if not run.held_out_images:
            raise
        if os.environ.get("RANK", "0") == "0":
            mark_diverged(plan, run, stage)
            sys.stderr.write(f"{error}; the search goes on without this trial\n")
