"""Which known values a finished study meets: published scores on their own terms, and split sizes."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import pandas as pd

from harness.data.sources import EXPECTED
from harness.reporting.context import read_csv
from harness.reporting.published import read_published

__all__ = ["nearest_rows", "published_protocols", "verify_counts", "verify_scores"]

_PROTOCOL_COLUMNS = ["method", "protocol", "source"]


def published_protocols(folder: Path | str) -> pd.DataFrame:
    """``method``, ``protocol`` (a name of ``protocols.csv``), ``source``: under which a method was scored.

    Raises:
        ValueError: the file is not there or has other columns.
    """
    path = Path(folder) / "protocols.csv"
    if not path.is_file():
        raise ValueError(f"{path} is not there; it says under which protocol each method was scored")
    frame = pd.read_csv(path, keep_default_na=False)
    if list(frame.columns) != _PROTOCOL_COLUMNS:
        raise ValueError(f"{path} must have the columns {', '.join(_PROTOCOL_COLUMNS)}")
    return frame


def verify_scores(
    tables: Path | str,
    published: Path | str,
    *,
    tolerance: float,
    methods: tuple[str, ...] = (),
    projectors: Collection[str] | None = None,
) -> list[dict[str, Any]]:
    """Every published value of the splits at hand beside ours, under the protocol it was published under.

    Args:
        tables: a study's ``tables`` folder.
        published: ``results/published``.
        tolerance: most that the two may be apart, as a fraction.
        methods: only these, as named in the published files; none: all.
        projectors: only rows of these (a control meets nothing); ``None``: all.

    Returns:
        A dict a row of ours and published value; ``met`` is ``None`` where the method's protocol is
        unknown, or none of ours is predicted under it: then nothing can be said.

    Raises:
        ValueError: a table is missing, or a method is not among the published.
    """
    ours = read_csv(Path(tables) / "protocols.csv")
    if projectors is not None:
        ours = ours[ours["projector"].isin(list(projectors))]
    known = read_published(published)
    known = known[known["value"].notna()].merge(published_protocols(published), how="left", on="method")
    unknown = set(methods) - set(known["method"])
    if unknown:
        raise ValueError(f"no published value of {', '.join(sorted(unknown))}; there are those of "
                         f"{', '.join(sorted(set(known['method'])))}")  # fmt: skip
    if methods:
        known = known[known["method"].isin(methods)]
    out: list[dict[str, Any]] = []
    for value in known.to_dict("records"):
        place = (ours["dataset"] == value["dataset"]) & (ours["split"] == value["split"])
        named = isinstance(value["protocol"], str) and value["protocol"] != ""
        there = place & (ours["protocol"] == value["protocol"]) if named else place
        fair = named and bool(there.any())
        rows = ours[there if fair else place & ours["protocol"].isin(["full", "full.generate"])]
        for row in rows.to_dict("records"):
            gap = row[value["metric"]] - value["value"]
            out.append(
                {
                    "projector": row["projector"], "variant": row["variant"], "budget": row["budget"],
                    "dataset": row["dataset"], "split": row["split"], "metric": value["metric"],
                    "protocol": row["protocol"], "ours": row[value["metric"]], "method": value["method"],
                    "published": value["value"],
                    "published_protocol": value["protocol"] if named else "unknown",
                    "how_known": value["how_known"], "difference": gap, "tolerance": tolerance,
                    "met": abs(gap) <= tolerance + 1e-9 if fair else None,
                }
            )  # fmt: skip
    return out


def nearest_rows(scores: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Of each published value the row of ours that comes nearest, from :func:`verify_scores`."""
    found: dict[tuple[str, ...], dict[str, Any]] = {}
    for score in scores:
        value = tuple(score[name] for name in ("method", "dataset", "split", "metric"))
        if value not in found or abs(score["difference"]) < abs(found[value]["difference"]):
            found[value] = score
    return list(found.values())


def verify_counts(summary: dict[str, Any], split_by: dict[str, str]) -> list[dict[str, Any]]:
    """Sizes of the prepared splits against the known ones.

    Args:
        summary: of the prepared tables.
        split_by: who split each dataset.
    """
    out = []
    for dataset, splits in summary["datasets"].items():
        for split, found in splits.items():
            known = EXPECTED.get((dataset, split_by.get(dataset, ""), split))
            for what, count in (known.model_dump() if known else {}).items():
                if count is not None:
                    out.append(
                        {
                            "dataset": dataset, "split": split, "count": what, "ours": found[what],
                            "known": count, "met": found[what] == count,
                        }
                    )  # fmt: skip
    return out
