"""``svp compare``: whether a study that was run again says the same."""

from __future__ import annotations

import json as json_module
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.commands.answer import answer

__all__ = ["compare"]


def compare(
    first: Path,
    second: Path,
    *,
    seeds: Path | None = None,
    json: bool = False,
    out: Path | None = None,
) -> None:
    """Say how far two runs of a study agree, row by row: yours and a snapshot, or two machines'.

    A row that scores alike to the last digit in every split is the same trained run, not a second one
    (studies share runs), and is left out.

    Args:
        first: ``results/STUDY``, or a snapshot, ``results/reference/STUDY``.
        second: the other run of it.
        seeds: snapshot of a study of several seeds, which says how far a seed alone moves a row; default:
            ``results/reference/seeds``, if it is there.
        json: print one JSON value.
        out: a JSON file that keeps the comparison; ``svp snapshot`` tells of those in
            ``results/reference/reruns``.
    """
    from harness.files import read_json, write_json
    from harness.reporting.agreement import agreement, beyond
    from harness.reporting.context import ROW_KEY, read_csv, row_label
    from harness.reporting.retraining import retraining

    if seeds is not None and not (seeds / "tables" / "overall.csv").is_file():
        raise ValueError(
            f"--seeds: {seeds} holds no tables/overall.csv; name the snapshot of a study of several seeds"
        )
    found = agreement(first, second)
    again = retraining(seeds or Path("results/reference/seeds"))
    runs = [read_csv(folder / "tables" / "overall.csv") for folder in (first, second)]
    half = again.half(min(int(table["seed_count"].min()) for table in runs)) if again else None
    far = beyond(found, half) if half is not None else None
    provenance = [folder / "provenance.json" for folder in (first, second)]
    value = {
        "study": read_json(first / "tables" / "context.json")["study"],
        "made_by": [read_json(file) if file.is_file() else None for file in provenance],
        **{name: round(getattr(found, name), 6) for name in ("shift", "sd", "spearman")},
        "seed_half": round(half, 6) if half is not None else None,
        "told": found.told,
        "same_run": found.same.to_dict("records"),
        "rows": json_module.loads(found.rows.round(6).to_json(orient="records")),
    }
    if out is not None:
        write_json(out, value)

    def label(row: Mapping[Any, Any]) -> str:
        return row_label(*(row[key] for key in ROW_KEY), with_budget=True)

    lines = [f"{'row':28} {'first':>6} {'second':>6} {'moved':>6}"]
    for row in found.rows.to_dict("records"):
        moved = (row["first"], row["second"], row["difference"])
        lines.append(f"{label(row):28} {100 * moved[0]:6.1f} {100 * moved[1]:6.1f} {100 * moved[2]:+6.1f}")
    lines += [f"{label(row):28} the same trained run" for row in found.same.to_dict("records")]
    lines += ["", found.told]
    if half is not None and far is not None:
        names = ", ".join(label(row) for row in far.to_dict("records")) or "none"
        lines.append(f"Beside that, moved by more than another seed may (±{100 * half:.1f}): {names}.")
    answer(value, json, "\n".join(lines))
