"""Starts the processes that share a job of a run, and is what each of them does."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Literal

from torch import distributed

from harness.devices import require_gpus, usable_gpus
from harness.planning.plan import Plan
from harness.prediction import predict_stage
from harness.running.children import die_with_parent, run_child
from harness.running.failures import explained
from harness.training.diverged import divergence_marked
from harness.training.loop import train_stage

__all__ = ["Job", "launch"]

Job = Literal["stage1", "stage2", "predict"]


def launch(config: Path, run: str, job: Job, processes: int, *, gpu: bool = False) -> None:
    """Do one job of a run in ``processes`` processes of this machine, and wait for them.

    They end with this process, killed or not.

    Args:
        config: the resolved study.
        run: the run's id.
        job: a stage of training, or prediction.
        processes: one for each GPU; on a machine without one they share the CPU.
        gpu: whether they must not.

    Raises:
        ValueError: there are fewer GPUs than processes, none though ``gpu``, or a process failed.
    """
    require_gpus(processes if gpu or usable_gpus() else 0)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node", str(processes), "-m", "harness.running.processes"]
    if run_child([*command, str(config), run, job]):
        raise ValueError(f"{run}: one of {processes} processes failed in {job}; its message stands above")


def _main(config: str, run: str, job: str) -> None:
    plan = Plan.load(config)
    if job == "predict":
        predict_stage(plan, plan.runs[run])
    else:
        tuned, stage = plan.tuned(plan.trainable[run]), int(job.removeprefix("stage"))
        with divergence_marked(plan, tuned, stage):
            train_stage(plan, tuned, stage)
    if distributed.is_initialized():
        distributed.destroy_process_group()


if __name__ == "__main__":
    die_with_parent(os.getppid())  # torchrun, when killed, leaves its processes to themselves
    try:
        _main(*sys.argv[1:])
    except Exception as error:
        if told := explained(error):
            sys.stderr.write(f"{told}\n")
        raise
