"""``svp data``, ``svp doctor``: get the raw data, look at them, look at everything else."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App

from harness.commands.answer import answer
from harness.commands.protocols import overlap

if TYPE_CHECKING:
    from harness.data.check import Finding

__all__ = ["data", "doctor"]

data = App(name="data", help="Fetch raw data, and check what is there.")
data.command(overlap)


def _say(text: str) -> None:
    sys.stderr.write(text + "\n")


def _report(findings: list[Finding], as_json: bool) -> int:
    """Print one line a finding; 0 where all is well, 2 where something is missing or wrong."""
    text = "\n".join(f"{f.status:8} {f.check}" + (f"  -> {f.mend}" if f.mend else "") for f in findings)
    answer({"findings": [asdict(f) for f in findings]}, as_json, text)
    return 2 if any(f.status in ("missing", "wrong") for f in findings) else 0


@data.command
def fetch(*names: str, root: Path = Path("data"), retries: int = 2) -> None:
    """Fetch raw data from mirrors, check and unpack them; what is there and whole is left alone.

    Args:
        names: refcoco, refcoco+, refcocog, coco, grefcoco, reasonseg; none: the first four.
        root: the data root.
        retries: further tries a mirror; each goes on where the last one ended.
    """
    from harness.data.fetch import fetch as fetch_one
    from harness.data.sources import get_source

    wanted = names or ("refcoco", "refcoco+", "refcocog", "coco")
    for name in wanted:
        get_source(name)  # a misspelt name is refused before the first of many gigabytes
    for name in wanted:
        fetch_one(name, root, say=_say, retries=retries)


@data.command
def check(
    study: list[Path] | None = None,
    *,
    root: Path = Path("data"),
    data_root: str | None = None,
    json: bool = False,
) -> int:
    """Say what is there of the raw data: files, counts of every split against the known ones, images.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order: its data
            are read whole. None: only look for files below ``root``.
        root: the data root, where no study is given.
        data_root: the data root in place of the study's, where one is given.
        json: print one JSON value.

    Returns:
        0 all is well, 2 something is missing or wrong.
    """
    from harness.data.check import check_data, check_sources
    from harness.data.options import ReferData
    from harness.data.sources import find_sources

    if study is None:
        return _report(check_sources(root, list(find_sources())), json)
    from harness.planning.plan import Plan

    plan = Plan.named(study, data_root)
    found = dict.fromkeys(run.data for run in plan.runs.values())
    return _report([f for d in found if isinstance(d, ReferData) for f in check_data(d)], json)


def doctor(study: list[Path] | None = None, *, data_root: str | None = None, json: bool = False) -> int:
    """Check everything before a long run: data, weights, GPU, memory, attention, disk, tracker.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order.
        data_root: folder of the raw data, in place of the study's.
        json: print one JSON value.

    Returns:
        0 all is well, 2 something is missing or wrong.
    """
    from harness.data.check import Finding
    from harness.planning.plan import Plan
    from harness.running.doctor import examine

    try:
        plan = Plan.named(study, data_root)
    except ValueError as error:  # a study that cannot be is a finding too
        return _report([Finding(f"study: {error}", "wrong", "mend it, and ask again")], json)
    return _report(examine(plan), json)
