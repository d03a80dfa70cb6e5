"""What the learning-rate search of each row found, as a table and as a sentence."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.reporting.context import ROW_KEY

__all__ = ["SEARCH_COLUMNS", "search_notes", "search_table"]

_SAME = ("n_expressions", "n_images", "stage1_steps", "stage2_steps")
SEARCH_COLUMNS = (*ROW_KEY, "factor", "learning_rate", "giou", "chosen", *_SAME)


def search_table(searches: Mapping[str, Mapping[str, Any]], factors: tuple[float, ...]) -> pd.DataFrame:
    """One line a trial.

    Args:
        searches: what the search wrote (``tuning/<row>.json``), by ``projector.variant.budget``.
        factors: the grid, in factors of the recipe's rate.

    Returns:
        ``SEARCH_COLUMNS``: ``giou`` from 0 to 1 on held-out images of train, NaN where the trial diverged,
        ``chosen`` whether the row was trained at this rate. Empty where nothing was searched.
    """
    lines = []
    for row, found in searches.items():
        key = dict(zip(ROW_KEY, row.rsplit(".", 2), strict=True))
        same = {name: found[name] for name in _SAME}
        rates = found["learning_rates"]
        for factor, rate, giou in zip(sorted(factors), rates, found["giou"], strict=True):
            chosen = rate == found["learning_rate"]
            tried = {"factor": factor, "learning_rate": rate, "giou": giou, "chosen": chosen}
            lines.append({**key, **tried, **same})
    return pd.DataFrame(lines, columns=list(SEARCH_COLUMNS))


def search_notes(table: pd.DataFrame) -> list[str]:
    """How many rows each factor won, and at what cost, for the foot of the main table."""
    if table.empty:
        return []
    first = table.iloc[0]
    won = table[table["chosen"]].groupby("factor").size()
    wins = ", ".join(f"{won.get(factor, 0)} took {factor:g} times" for factor in sorted(set(table["factor"])))
    lost = int(table["giou"].isna().sum())
    said = f" Of {len(table)} trials {lost} diverged." if lost else ""
    return [
        f"Learning-rate search: of {int(won.sum())} rows {wins} the recipe's rate, by gIoU on "
        f"{first['n_expressions']:,} expressions of {first['n_images']:,} images of train, after "
        f"{first['stage1_steps']} + {first['stage2_steps']} steps (learning_rates.csv).{said}"
    ]
