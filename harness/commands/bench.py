"""``svp bench``: what the parts cost and save; packages of projectors add their own."""

from __future__ import annotations

import tempfile
from pathlib import Path

from cyclopts import App

from harness.commands.answer import answer

__all__ = ["bench"]

bench = App(name="bench", help="Measure what the parts cost and save.")


def _bench(name: str, study: Path, folder: Path | None, as_json: bool) -> None:
    import harness.measuring.bench as measures

    with tempfile.TemporaryDirectory() as fresh:
        found = getattr(measures, f"bench_{name}")(study, folder or Path(fresh))
    speed, apart = found["speedup"], found["max_abs_diff"]
    text = f"{found['row']}: {speed:.2f} times as fast, largest difference {apart:.2g}"
    answer(found, as_json, text)


@bench.command(name="cache")
def bench_cache(
    study: Path = Path("config/default.yaml"), *, folder: Path | None = None, json: bool = False
) -> None:
    """A training step with cached features against one that encodes its photographs.

    Args:
        study: its first row and its models are measured, on a few images.
        folder: keeps data and models for another call; default: a temporary one.
        json: print one JSON value.
    """
    _bench("cache", study, folder, json)


@bench.command(name="prefix")
def bench_prefix(
    study: Path = Path("config/default.yaml"), *, folder: Path | None = None, json: bool = False
) -> None:
    """An image's expressions behind one visual prefix against each behind a copy of its own.

    Args:
        study: its rows and its models are measured, on one image.
        folder: keeps data and models for another call; default: a temporary one.
        json: print one JSON value.
    """
    _bench("prefix", study, folder, json)


@bench.command(name="plan")
def bench_plan(*study: Path, json: bool = False) -> None:
    """A dry run of a study's jobs against one of as many jobs that ask no plan.

    Args:
        study: files of ``config/``, as ``snakemake --configfile`` takes them.
        json: print one JSON value.
    """
    from harness.measuring.planning import bench_plan as measured

    found = measured(study)
    text = (
        f"{found['jobs']} jobs planned in {found['plan_cpu_s']:.1f} s of CPU time "
        f"({found['plan_wall_s']:.1f} s of wall clock), "
        f"{found['ratio']:.1f} times what as many plain jobs take"
    )
    answer(found, json, text)
