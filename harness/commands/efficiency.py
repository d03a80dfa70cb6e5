"""``svp efficiency``: what the rows of a finished study cost on the machine at hand."""

from __future__ import annotations

import json as json_module
import re
import shlex
from pathlib import Path

from harness.commands.answer import answer

__all__ = ["efficiency"]


def efficiency(
    study: list[Path] | None = None,
    *,
    out: Path = Path("results/efficiency"),
    data_root: str | None = None,
    json: bool = False,
) -> None:
    """Time every trained row of a study on this machine, as the study's own job does.

    So rows that a cluster trained are timed on one GPU after another. Close what else runs: it is timed too.

    Args:
        study: a file of ``config/``, or several, merged onto ``config/default.yaml`` in their order; its rows
            must be trained.
        out: ``DEVICE/STUDY/efficiency.{json,csv}`` and ``provenance.json`` go there.
        data_root: folder of the raw data that it was run with, in place of the study's.
        json: print one JSON value, the timings in milliseconds.
    """
    from harness.files import write_json
    from harness.measuring.efficiency import efficiency_stage
    from harness.planning.plan import Plan
    from harness.reporting.context import read_efficiency, write_csv
    from harness.reporting.snapshot import provenance_of

    plan = Plan.named(study, data_root)
    untrained = [run.id for run in plan.timed if not plan.weights(run.id).is_file()]
    if untrained:
        raise ValueError(
            f"{plan.study_dir}: {len(untrained)} of {len(plan.timed)} rows are not trained, such as "
            f"{untrained[0]}; run the study first"
        )
    command = shlex.join(["svp", "efficiency", *map(str, study or [])])
    # Of this machine and this code: the study may have run on others.
    made_by = {**provenance_of(command), "study": plan.study.study, "effort": plan.study.effort}
    device = re.sub(r"[^a-z0-9]+", "-", str(made_by["device"]).lower()).strip("-")
    folder = out / device / plan.study_dir.name
    efficiency_stage(plan, folder / "efficiency.json")
    timings, parameters, relative = read_efficiency([folder / "efficiency.json"])
    write_csv(folder / "efficiency.csv", timings, "%.6g")
    write_json(folder / "provenance.json", made_by)
    one = timings[(timings["batch"] == 1) & (timings["stage"] == "total")]
    row = ["projector", "variant", "budget"]
    table = one.pivot(index=row, columns="case", values="median_ms").rename(columns="{}_ms".format)
    table = relative.merge(table.reset_index(), on=row).merge(parameters[[*row, "parameters"]], on=row)
    table = table[[*row, "cold_ms", "cached_ms", "speedup_infer", "speedup_train", "parameters"]]
    value = {"out": str(folder), **made_by, "rows": json_module.loads(table.to_json(orient="records"))}
    shown = table.to_string(index=False, float_format=lambda v: f"{v:.2f}")
    answer(value, json, f"{shown}\none image at a time, milliseconds; {made_by['device']}; {folder}")
