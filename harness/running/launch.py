"""``svp run``: start a study, or go on with one that was interrupted, and show its table.

A killed Snakemake leaves a lock and sometimes a job. The lock is lifted only where no process holds
it; a job whose workflow is gone is stopped, and its successor resumes from its last checkpoint.
Only this machine's processes are seen: the lock of a run that another one started is left alone, and jobs
left on a cluster are cancelled with its own tools.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import psutil

from harness.config import ConfigError
from harness.config.resolve import name_of_file, read_study
from harness.files import read_json, write_json
from harness.planning.keys import PARTS, is_pretrained, source_of
from harness.planning.plan import Plan
from harness.planning.weight_sources import expand_source, is_path
from harness.running.started import LOCK_HOLDER

__all__ = ["abandoned_jobs", "failed_jobs", "lift_lock", "run_study", "workflows"]

_LOG_OF_A_FAILED_JOB = re.compile(r"^    log: (.+) \(check log file")
_LOCKS = Path(".snakemake") / "locks"
_JOBS = ("harness.cli stage", "harness.running.processes")  # a job, and the processes that share one
_GRACE_S = 10


def _is_snakemake(process: psutil.Process) -> bool:
    words = [Path(word).name for word in process.cmdline()[:3]]
    return "snakemake" in words and words[0] not in ("bash", "sh")


def _working_in(folder: Path) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter():
        try:
            if Path(process.cwd()) == folder:
                found.append(process)
        except (psutil.Error, OSError):
            continue  # it ended meanwhile, or is somebody else's
    return found


def _kept(process: psutil.Process, test: Callable[[psutil.Process], bool]) -> bool:
    try:
        return test(process)
    except psutil.Error:
        return False


def _descendants(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.Error:
        return []


def workflows(folder: Path) -> list[psutil.Process]:
    """The Snakemake processes that work in ``folder``."""
    return [p for p in _working_in(folder) if _kept(p, _is_snakemake)]


def abandoned_jobs(folder: Path) -> list[psutil.Process]:
    """Jobs in ``folder`` whose Snakemake is gone, with the processes that they started."""

    def abandoned(process: psutil.Process) -> bool:
        words = " ".join(process.cmdline())
        if not any(job in words for job in _JOBS):
            return False
        return not any(_kept(parent, _is_snakemake) for parent in process.parents())

    jobs = [p for p in _working_in(folder) if _kept(p, abandoned)]
    return list(dict.fromkeys(each for job in jobs for each in (job, *_descendants(job))))


def lift_lock(folder: Path, snakemake: list[str], say: Callable[[str], None]) -> None:
    """Make an interrupted study startable again.

    Args:
        folder: the working directory.
        snakemake: the command that would run the study.
        say: where messages go.

    Raises:
        ConfigError: another Snakemake works here, or may work here on another host.
    """
    if running := workflows(folder):
        pids = ", ".join(str(p.pid) for p in running)
        raise ConfigError(f"a Snakemake (process {pids}) already works in {folder}; wait for it, or stop it")
    locked = any((folder / _LOCKS).glob("*"))
    if locked:
        _refuse_another_host(folder / LOCK_HOLDER)
    if jobs := abandoned_jobs(folder):
        say(f"stopping jobs of an interrupted run (processes {', '.join(str(p.pid) for p in jobs)})")
        for job in jobs:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.terminate()
        for job in psutil.wait_procs(jobs, timeout=_GRACE_S)[1]:
            with contextlib.suppress(psutil.NoSuchProcess):
                job.kill()
    if locked:
        say("lifting the lock of an interrupted run")
        subprocess.run([*snakemake, "--unlock", "--quiet"], cwd=folder, check=True)


def _refuse_another_host(record: Path) -> None:
    """The lock of a run that was started elsewhere may be in use: its processes cannot be seen from here."""
    if not record.is_file():
        return
    started, here = read_json(record), os.uname().nodename
    if started["host"] != here:
        raise ConfigError(
            f"Snakemake was started in this folder on {started['host']} (process {started['pid']}), which "
            f"cannot be seen from {here}; wait for it or run again there, or, if none of it is left running, "
            f"delete {record.resolve()} and run again"
        )


@contextlib.contextmanager
def _recorded(record: Path) -> Iterator[None]:
    """Say on which host this process has Snakemake hold its lock; of a killed one both are left behind."""
    write_json(record, {"host": os.uname().nodename, "pid": os.getpid()})
    try:
        yield
    finally:
        if not any((record.parent / _LOCKS.name).glob("*")):
            record.unlink(missing_ok=True)


def failed_jobs(folder: Path, since: float) -> list[str]:
    """Each job that failed: its log, and the last line of it, which says why.

    Args:
        folder: the working directory; Snakemake's own log lies there.
        since: seconds since the epoch; older logs are of earlier runs.
    """
    logs: dict[str, None] = {}
    for file in sorted((folder / ".snakemake" / "log").glob("*.log")):
        if file.stat().st_mtime >= since - 1:
            found = map(_LOG_OF_A_FAILED_JOB.match, file.read_text(errors="replace").splitlines())
            logs |= dict.fromkeys(match[1] for match in found if match)
    told = []
    for log in logs:
        path = folder / log
        lines = path.read_text(errors="replace").strip().splitlines() if path.is_file() else []
        told.append(f"{log}: {lines[-1].strip()}" if lines else f"{log}, which says nothing")
    return told


def _changed(path: Path) -> int | None:
    return path.stat().st_mtime_ns if path.is_file() else None


def _check_weights(plan: Plan) -> None:
    """Look for weights before any job starts, as far as the study says where they lie."""
    for run in {run.models.model_dump_json(): run for run in plan.runs.values()}.values():
        for part in PARTS:
            source = source_of(run, part)
            if source is None or is_pretrained(run, part):
                continue
            path = expand_source(source, part)
            if (part in ("sam", "start") or is_path(source)) and not Path(path).exists():
                raise ConfigError(f"models: {part}: {path} is not there; `svp doctor` says how to get it")


def _shared_gpus(plan: Plan) -> list[str]:
    """What tells Snakemake how many GPUs this machine's jobs have between them, where jobs ask for some.

    Without it as many jobs share a card as there are cores for.
    """
    if not any(run.models.gpu for run in plan.runs.values()):
        return []
    from harness.devices import usable_gpus  # imports torch

    count = usable_gpus()
    return ["--resources", f"gpu={count}"] if count else []  # without one the jobs themselves say why


def _add_minutes(plan: Plan, minutes: float) -> float:
    """Keep how long the study has run, in all calls since its folder was made, for its provenance."""
    kept = read_json(plan.minutes_file) if plan.minutes_file.is_file() else []
    write_json(plan.minutes_file, [*kept, round(minutes, 2)])
    return minutes


def run_study(
    study: Path | Sequence[Path],
    *,
    profile: str | None = None,
    data_root: str | None = None,
    dry_run: bool = False,
    say: Callable[[str], None],
) -> int:
    """Run a study with Snakemake and print its main table.

    Args:
        study: a study file, or several, merged in their order.
        profile: a Snakemake profile.
        data_root: folder of the raw data, in place of the study's.
        dry_run: make the same checks, then plan only.
        say: where messages go.

    Returns:
        Snakemake's exit status. Where a job failed after the table was written, the table is printed all the
        same.

    Raises:
        ConfigError: the study or one of its rows cannot be run, or another Snakemake works here.
    """
    from harness.running.refusals import check_rows  # imports torch

    raw = read_study(study)
    if data_root is not None:
        raw["data_root"] = data_root
    plan = Plan.from_raw(raw)
    files = [study] if isinstance(study, Path) else list(study)
    command = [sys.executable, "-m", "snakemake", "--cores", "all", "--configfile", *map(str, files)]
    # Snakemake is not told what a study without a name is called.
    given = {"study": name_of_file(files[-1]), "data_root": data_root}
    if words := [f"{key}={value}" for key, value in given.items() if value is not None]:
        command += ["--config", *words]
    plan.check_inputs()
    _check_weights(plan)
    check_rows(plan)
    if dry_run:
        named = [] if profile is None else ["--profile", profile]
        return subprocess.run([*command, *named, "--dry-run"]).returncode
    lift_lock(Path.cwd(), command, say)
    command += _shared_gpus(plan) if profile is None else ["--profile", profile]
    command += ["--rerun-incomplete", "--keep-going", "--show-failed-logs"]
    say(
        f"{len(plan.runs)} runs into {plan.study_dir}; progress of each job in logs/\n$ {shlex.join(command)}"
    )
    start, begun, table = time.monotonic(), time.time(), plan.tables_dir / "main.md"
    before = _changed(table)
    with _recorded(Path.cwd() / LOCK_HOLDER):
        status = subprocess.run(command).returncode
    minutes = _add_minutes(plan, (time.monotonic() - start) / 60)
    # Times of one file are compared: the clock of a file server may be another.
    written = _changed(table) not in (None, before)
    for job in failed_jobs(Path.cwd(), begun):
        say(f"failed: {job}")
    if status == 0 or written:
        sys.stdout.write(table.read_text() + "\n")
        say(f"tables:  {plan.tables_dir}\nfigures: {plan.figures_dir}")
    if status == 0:
        say(f"MLflow:  {read_json(plan.published_file)['tracking_uri']}")
        say(f"took {minutes:.1f} minutes, without what was there before")
    elif written:
        say(
            "the tables are finished, but a later job (figures, MLflow) failed; its message stands above, "
            "run again to go on"
        )
    return status
