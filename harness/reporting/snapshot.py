"""Copies a finished study's tables and figures to ``results/reference``, where they can be committed.

No rule names that folder as output, so that a fresh clone still has something to do.
"""

from __future__ import annotations

import json
import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any

from harness.data.options import ReferData
from harness.files import atomic_path, read_json, write_json
from harness.planning.plan import Plan
from harness.reporting.claims import write_claims
from harness.reporting.digest import write_digest
from harness.running.started import code_state

__all__ = ["provenance", "provenance_of", "show_in_readme", "take_snapshot", "write_pages"]

_PACKAGES = ("torch", "transformers", "peft", "segment-anything", "scikit-image", "numpy", "pandas")


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def provenance(plan: Plan, command: str) -> dict[str, Any]:
    """What made a study's results: command, commit, machine, versions, and minutes where `svp run` made them.

    Commit and changes are those of its last start, the GPU that of its timings, else they are those at hand;
    ``trained_at`` names each commit that its rows were trained at, or ``unknown`` where a log does not say.
    What an earlier study left, data, models and runs, was not made again and is not in the minutes.
    """
    took = {"minutes": round(sum(read_json(plan.minutes_file)), 1)} if plan.minutes_file.is_file() else {}
    ran = read_json(plan.started_file) if plan.started_file.is_file() else {}
    return {
        **provenance_of(command),
        **ran,
        **_timed_on(plan),
        **_trained_at(plan),
        "study": plan.study.study,
        "effort": plan.study.effort,
        **took,
    }


def _timed_on(plan: Plan) -> dict[str, str]:
    """The GPU of the study's jobs: the snapshot may be taken on a machine without one."""
    if not plan.efficiency_file.is_file():
        return {}
    names = {row["device"] for row in read_json(plan.efficiency_file).get("rows", [])}
    return {"device": names.pop()} if len(names) == 1 and not min(names).startswith("cpu") else {}


def _trained_at(plan: Plan) -> dict[str, list[str]]:
    """Commits that trained the study's rows, those of other studies that it took too."""
    found: set[str] = set()
    for run in plan.trained:
        file = plan.log_file(run.id)
        lines = [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []
        states = [line for line in lines if "commit" in line]
        found |= {s["commit"] + (" and changes" if s["uncommitted_changes"] else "") for s in states}
        found |= set() if states else {"unknown"}
    return {"trained_at": sorted(found)}


def provenance_of(command: str) -> dict[str, Any]:
    """What made any results: command, commit, machine and versions."""
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else None
    return {
        "command": command,
        **code_state(),
        "device": gpu or f"{_processor()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": {name: version(name) for name in _PACKAGES},
    }


def take_snapshot(plan: Plan, command: str) -> Path:
    """Copy tables and figures, and write the page of all snapshots and that of the paper's claims anew.

    Figures of real photographs stay behind, as many licences forbid derivatives.

    Args:
        plan: a finished study.
        command: what made the results.

    Returns:
        The snapshot's folder.

    Raises:
        ValueError: the study is not finished.
    """
    if not plan.published_file.is_file():
        raise ValueError(f"{plan.published_file} is missing; run the study to its end first")
    made_by = provenance(plan, command)  # before the copies change the tree
    out = plan.results / "reference" / plan.study_dir.name
    photographs = any(isinstance(run.data, ReferData) for run in plan.runs.values())
    for folder in [plan.tables_dir] if photographs else [plan.tables_dir, plan.figures_dir]:
        target = out / folder.name
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, target)
    write_json(out / "provenance.json", made_by)
    write_pages(out.parent)
    if plan.study_dir.name == "default":
        show_in_readme(Path("README.md"), (out / "tables" / "main.md").read_text())
    return out


def write_pages(reference: Path) -> list[Path]:
    """What is told of all snapshots together: their page and charts, and the paper's claims with verdicts.

    Args:
        reference: ``results/reference``.

    Raises:
        ValueError: no snapshot lies there.
    """
    if not any(reference.glob("*/tables/context.json")):
        raise ValueError(f"{reference} holds no snapshot; make one with `svp snapshot`")
    claims = Path("results/published/claims.yaml")
    return [write_digest(reference), *([write_claims(reference, claims)] if claims.is_file() else [])]


def show_in_readme(readme: Path, table: str) -> None:
    """Put ``table`` between the README's two result markers, so that no number in it is typed.

    Raises:
        ValueError: the markers are not there.
    """
    text = readme.read_text()
    start, end = "<!-- main table -->\n", "<!-- end of main table -->"
    if text.count(start) != 1 or text.count(end) != 1:
        raise ValueError(f"{readme} must hold the lines '{start.strip()}' and '{end}' once each")
    head, _, rest = text.partition(start)
    tail = rest.partition(end)[2]
    with atomic_path(readme) as aside:
        aside.write_text(f"{head}{start}{table.strip()}\n{end}{tail}")
