"""What a job of a run asks of the machine; the workflow passes it on to Snakemake and Slurm."""

from __future__ import annotations

from collections.abc import Sequence

from harness.config import RunConfig
from harness.data.options import ReferData
from harness.planning.keys import part_of

__all__ = [
    "cpus",
    "gpus",
    "memory_mb",
    "minutes",
    "own_weights_mb",
    "pretrain_priority",
    "prediction_processes",
    "preparation_mb",
    "tables_mb",
    "tables_minutes",
    "threads",
    "train_priority",
]


def threads(run: RunConfig) -> int:
    """Torch threads of a process: from the config, so that results do not hang on the machine."""
    return run.training.torch_threads


def cpus(run: RunConfig, processes: int = 1) -> int:
    """CPU cores of a job: one a torch thread of each of its processes."""
    return processes * threads(run)


def prediction_processes(run: RunConfig) -> int:
    """Processes that share a run's prediction: those of its training, one where there is no model."""
    return 1 if run.acts_on == "superpixels" else run.training.processes


def gpus(run: RunConfig, processes: int = 1) -> int:
    """GPUs: one a process, none at tiny size."""
    return processes if run.models.gpu else 0


def memory_mb(run: RunConfig, least: int, processes: int = 1) -> int:
    """Host memory of a job that takes ``least`` at tiny size."""
    return max(least, 1000 * run.models.memory_gb * processes)


def preparation_mb(run: RunConfig, attempt: int) -> int:
    """Host memory to prepare a run's data: RefCOCO, RefCOCO+ and RefCOCOg together take 3.1 GB."""
    return attempt * (6000 if isinstance(run.data, ReferData) else 2000)


def tables_mb(runs: int, attempt: int) -> int:
    """Host memory to write the tables of ``runs`` runs: 16 MB a run at full size, beside 1 GB."""
    return attempt * (1500 + 24 * runs)


def tables_minutes(runs: int, attempt: int) -> int:
    """Time limit to write the tables of ``runs`` runs: 13 s a run at full size."""
    return attempt * (30 + runs // 2)


def own_weights_mb(runs: Sequence[RunConfig]) -> int:
    """Host memory of what each of many rows learns, when all are loaded: embeddings, of 7B size."""
    return sum(1600 for run in runs if run.models.gpu)


def minutes(run: RunConfig, tiny: int) -> int:
    """Time limit of a job whose tiny form is given ``tiny`` minutes."""
    return 4 * tiny if run.models.gpu else tiny


def pretrain_priority(key: str) -> int:
    """90 to 95: all training waits for the start, and that for SAM, the longest, and the language model."""
    return {"sam": 95, "language": 93}.get(part_of(key), 90)


def train_priority(run: RunConfig) -> float:
    """30 to 60, the run with the most visual tokens first, so that no long job is left to the end."""
    height, width = run.models.vision.grid
    adaptive = run.budget is None and run.superpixels is not None
    share = 0.25 if adaptive else (run.budget or height * width) / (height * width)
    return 30 + 30 * min(share, 1.0)
