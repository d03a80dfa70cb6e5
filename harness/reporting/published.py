"""Published numbers beside ours: printed apart, never ranked with what was measured here."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from harness.reporting.context import split_order

__all__ = ["PUBLISHED_COLUMNS", "published_markdown", "read_published"]

PUBLISHED_COLUMNS = ("method", "dataset", "split", "metric", "value", "source", "how_known", "note")


def read_published(folder: Path | str) -> pd.DataFrame:
    """Every published score of a folder's ``*_scores.csv`` files.

    Returns:
        ``PUBLISHED_COLUMNS``; ``value`` 0–1, missing where nobody has read it yet; ``how_known`` is V
        (read in the named source itself), S (from a secondary summary) or empty.

    Raises:
        ValueError: a file lacks a column or holds a value outside 0–1.
    """
    frames = []
    for path in sorted(Path(folder).glob("*_scores.csv")):
        frame = pd.read_csv(path, dtype={"value": float}, keep_default_na=False, na_values={"value": [""]})
        if tuple(frame.columns) != PUBLISHED_COLUMNS:
            raise ValueError(f"{path} must have the columns {', '.join(PUBLISHED_COLUMNS)}")
        if not frame["value"].dropna().between(0, 1).all():
            raise ValueError(f"{path}: published values are fractions 0–1, not percent")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=list(PUBLISHED_COLUMNS))


def published_markdown(folder: Path | str, main: pd.DataFrame, metric: str = "ciou") -> str:
    """Published numbers of the datasets in ``main``, apart from ours; empty text where there are none.

    Args:
        folder: see :func:`read_published`.
        main: the frame of ``main.csv``; says which datasets and splits matter.
        metric: ``ciou`` or ``giou``.
    """
    rows = read_published(folder)
    places = split_order(list(zip(main["dataset"], main["split"], strict=True)))
    rows = rows[rows["metric"].eq(metric) & rows["value"].notna()]
    rows = rows[[p in places for p in zip(rows["dataset"], rows["split"], strict=True)]]
    if rows.empty:
        return ""
    name = "gIoU" if metric == "giou" else "cIoU"
    lines = [f"## Published {name}, not measured here", ""]
    lines += [
        "Other training data, protocols and models: to be read beside our rows, never ranked with them.",
        "",
    ]
    lines += ["| method | " + " | ".join(" ".join(p) for p in places) + " | known from |"]
    lines += ["|:---|" + "---:|" * len(places) + ":---|"]
    for method, part in rows.groupby("method", sort=False):
        cells = []
        for dataset, split in places:
            values = part[part["dataset"].eq(dataset) & part["split"].eq(split)]["value"]
            cells.append("–".join(sorted({f"{100 * v:.1f}" for v in values})))
        sources = "; ".join(dict.fromkeys(part["source"]))
        lines.append(f"| {method} | {' | '.join(cells)} | {sources} |")
    return "\n".join(lines)
