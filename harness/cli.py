"""The ``svp`` program. Each command imports what it needs when it runs: ``svp --help`` needs no torch."""

from __future__ import annotations

import sys
import traceback
from importlib.metadata import entry_points, version
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import App, Parameter

from harness.commands.answer import answer
from harness.commands.bench import bench
from harness.commands.compare import compare
from harness.commands.data import data, doctor
from harness.commands.efficiency import efficiency
from harness.commands.protocols import protocols, verify
from harness.commands.segment import segment
from harness.commands.weights import weights
from harness.running.failures import explained
from harness.running.interpreter import leave_at_once
from harness.running.stages import StageName, run_stage

__all__ = ["app", "main"]

app = App(
    name="svp",
    help="Train, measure and compare visual projectors for referring image segmentation.",
    version=lambda: version("svp-harness"),
    result_action="return_value",
)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


@app.command
def run(
    study: list[Path] | None = None,
    *,
    profile: str | None = None,
    data_root: str | None = None,
    dry_run: Annotated[bool, Parameter(name=["--dry-run", "-n"])] = False,
) -> int:
    """Run a study to its tables, going on where an interrupted run stopped.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order.
        profile: a Snakemake profile, such as ``slurm``.
        data_root: folder of the raw data, in place of the study's.
        dry_run: check the study, say what would be done, do nothing.
    """
    from harness.running.launch import run_study

    files = study or [Path("config/default.yaml")]
    return run_study(files, profile=profile, data_root=data_root, dry_run=dry_run, say=_say)


@app.command
def plan(study: list[Path] | None = None, *, json: bool = False) -> None:
    """List the runs of a study, and where its files will lie.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order.
        json: print the resolved study as one JSON value.
    """
    from harness.planning.plan import Plan

    made = Plan.named(study)
    answer(made.as_json(), json, "\n".join([str(made.study_dir), *(f"  {run}" for run in made.runs)]))


@app.command
def projectors(*, json: bool = False, out: Path | None = None) -> None:
    """List every projector that is found.

    Args:
        json: print one JSON value.
        out: folder for ``parameters.csv`` and ``parameters.md``: trainable parameters beside those of
            released code (``results/published/parameters.csv``).
    """
    from harness.plugins.discovery import find_projectors

    if out is not None:
        from harness.plugins.parameters import write_parameter_report

        write_parameter_report(Path("results/published/parameters.csv"), out)
    counts: dict[str, dict[str, int]] = {}
    if json:  # needs torch
        from harness.plugins.parameters import count_parameters

        counts = {name: count_parameters(name) for name in find_projectors()}
    found = [
        {
            "name": info.name,
            "kind": info.kind,
            "reference": info.declared.get("reference", ""),
            "licence": info.declared.get("licence", ""),
            "departs": info.departs,
            "starts_from": info.starts_from,
            "budgets": list(info.declared.get("budgets", ())),
            "needs": list(info.needs),
            "parameters": counts.get(info.name, {}),
        }
        for info in find_projectors().values()
    ]
    answer(found, json, "\n".join(f"{p['name']:22} {p['kind']:10} {p['reference']}" for p in found))


@app.command(name="new-projector")
def new_projector(name: str, *, folder: Path = Path("baselines")) -> None:
    """Write a projector's file to start from; it passes the contract tests as it stands.

    Args:
        name: lower case, words joined by underscores.
        folder: where to write; ``baselines`` is searched by itself.
    """
    import shlex

    from harness.plugins.new_projector import write_projector

    path = write_projector(name, folder)
    test = shlex.join(["pytest", "tests/projectors/test_contract.py", "--projector", str(path)])
    _say(f"{path} is written; try it: {test}")


@app.command
def snapshot(
    study: list[Path] | None = None, *, command: str = "make run", data_root: str | None = None
) -> None:
    """Copy a finished study's tables and figures, with their provenance, to ``results/reference``.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order.
        command: what made the results, for ``provenance.json``.
        data_root: folder of the raw data that it was run with, in place of the study's.
    """
    from harness.planning.plan import Plan
    from harness.reporting.snapshot import take_snapshot

    _say(f"snapshot: {take_snapshot(Plan.named(study, data_root), command)}")


@app.command
def digest(folder: Path = Path("results/reference")) -> None:
    """Write the page of all snapshots, their charts of differences, and the verdicts on the paper's claims.

    ``svp snapshot`` does so too.

    Args:
        folder: of the snapshots.
    """
    from harness.reporting.snapshot import write_pages

    for path in write_pages(folder):
        _say(f"digest: {path}")


@app.command
def stage(
    name: StageName,
    *,
    config: Annotated[Path, Parameter(env_var="SVP_CONFIG")],
    key: str | None = None,
    run: str | None = None,
    stage: Literal[1, 2] | None = None,
) -> None:
    """Run one job of the workflow (its rules call this; any stage can be run and looked at alone).

    Args:
        name: the stage.
        config: the resolved study, ``results/<study>/config.json``; default: ``$SVP_CONFIG``.
        key: the shared artefact, for prepare, pretrain, features and superpixels.
        run: the run, for train, predict and score; the row, for tune.
        stage: 1 or 2, for train.
    """
    try:
        run_stage(name, config, key=key, run=run, stage=stage)
    except Exception as error:
        told = explained(error)
        if told is not None or isinstance(error, (ValueError, OSError)):
            traceback.print_exc()  # a job's log is read by whoever mends it
        if told is not None:
            raise ValueError(told) from error
        raise


for _command in (bench, compare, data, doctor, efficiency, protocols, segment, verify, weights):
    app.command(_command)


def _mount(added: Any) -> None:
    """A command, or commands that join those of the same name."""
    name = added.name[0] if isinstance(added, App) else None
    if name is not None and name in app:
        app[name].update(added)
    else:
        app.command(added)


# What projectors' packages add: the program names none of them.
for _point in entry_points(group="svp.commands"):
    _mount(_point.load())


def main() -> None:
    """Entry point: an expected error becomes one sentence on stderr and exit status 1."""
    try:
        status = app()
    except (ValueError, OSError) as error:
        _say(f"svp: {error}")
        sys.exit(1)
    if sys.argv[1:2] == ["stage"]:
        leave_at_once(status)
    sys.exit(status)


if __name__ == "__main__":
    main()
