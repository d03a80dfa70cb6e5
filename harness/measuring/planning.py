"""What planning a study costs: Snakemake's dry run of it against one of as many jobs that ask no plan.

CPU time, as every Slurm job pays it again on a node that others use too; no torch.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.config import ConfigError

__all__ = ["bench_plan", "plain_workflow"]

_FILES = "job_{number}.done"


def plain_workflow(jobs: int) -> str:
    """A Snakefile of ``jobs`` jobs, the one that gathers all the others included."""
    return (
        f"rule all:\n    input: [f'{_FILES}' for number in range({jobs - 1})]\n"
        f"rule one:\n    output: '{_FILES}'\n    shell: 'touch {{output}}'\n"
    )


def _dry_run(folder: Path, *words: str) -> tuple[int, float, float]:
    """Jobs, CPU seconds and wall seconds of a dry run.

    Raises:
        ConfigError: Snakemake refused it.
    """
    command = [sys.executable, "-m", "snakemake", "--dry-run", "--cores", "1", "--forceall", *words]
    before, start = os.times(), time.perf_counter()
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    wall, after = time.perf_counter() - start, os.times()
    said = done.stdout + done.stderr
    jobs = re.search(r"^total\s+(\d+)", said, flags=re.M)
    if done.returncode != 0 or jobs is None:
        raise ConfigError(f"snakemake cannot plan this: {said.strip()[-400:]}")
    cpu = after.children_user + after.children_system - before.children_user - before.children_system
    return int(jobs[1]), cpu, wall


def bench_plan(study: Sequence[Path], *, rounds: int = 3) -> dict[str, Any]:
    """Plan all jobs of a study, finished or not, and as many plain ones, in turns.

    Args:
        study: files of ``config/``, as ``snakemake --configfile`` takes them; none: the default study.
        rounds: dry runs of each; the medians are told.

    Returns:
        ``jobs``; ``plan_cpu_s``, ``plain_cpu_s`` and ``plan_wall_s``; ``ratio``, how many times as much CPU
        time the study's plan takes as plain jobs do.

    Raises:
        ConfigError: Snakemake refuses the study.
    """
    words = ["--configfile", *map(str, study)] if study else []
    jobs, found, plain = 0, [], []
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            jobs, *times = _dry_run(Path.cwd(), *words)
            found.append(times)
            (Path(folder) / "Snakefile").write_text(plain_workflow(jobs))
            plain.append(_dry_run(Path(folder))[1])
    cpu, wall = (statistics.median(values) for values in zip(*found, strict=True))
    own = statistics.median(plain)
    return {"jobs": jobs, "plan_cpu_s": cpu, "plain_cpu_s": own, "plan_wall_s": wall, "ratio": cpu / own}
