"""How far two runs of one study agree: on another machine, from other seeds, of another commit."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

import pandas as pd
from scipy import stats

from harness.files import read_json
from harness.reporting.context import ROW_KEY, read_csv, row_label

__all__ = ["Agreement", "agreement", "beyond", "reruns", "trained_giou"]

_KEY = list(ROW_KEY)


class Agreement(NamedTuple):
    """Two runs of a study, row by row; gIoU is the mean over splits, as a fraction.

    Attributes:
        rows: ``projector, variant, budget, first, second, difference`` of every row that both trained.
        shift: mean difference, second minus first: what moved all rows alike (an encoder pretrained anew).
        sd: of one row trained once, beside that shift: the standard deviation of the differences by the
            root of two, as both runs vary.
        spearman: rank correlation of the rows.
        same: ``projector, variant, budget`` of the rows left out, as both folders hold one trained run.
    """

    rows: pd.DataFrame
    shift: float
    sd: float
    spearman: float
    same: pd.DataFrame

    @property
    def told(self) -> str:
        """In words, in points of gIoU."""
        left_out = ""
        if len(self.same):
            left_out = f" Left out were {len(self.same)} rows: the same trained run, not a second one."
        return (
            f"The order of its {len(self.rows)} trained rows agrees with Spearman's ρ = {self.spearman:.2f}; "
            f"all moved by {100 * self.shift:+.1f} points of gIoU together, and beside that a row trained "
            f"once has a standard deviation of {100 * self.sd:.2f}.{left_out}"
        )


def trained_giou(folder: Path) -> pd.Series:
    """Mean gIoU over splits of each trained row, by ``projector, variant, budget``; the first protocol.

    Raises:
        ValueError: the folder holds no tables.
    """
    tables = folder / "tables"
    overall, main = read_csv(tables / "overall.csv"), read_csv(tables / "main.csv")
    names = main.loc[main["learning_rate"].notna(), _KEY].drop_duplicates()
    own = overall[overall["protocol"].eq(overall["protocol"].iloc[0])]
    return own.merge(names, on=_KEY, validate="one_to_one").set_index(_KEY)["giou"]


def _same_run(first: Path, second: Path) -> pd.DataFrame:
    """``projector, variant, budget`` of rows that score alike to the last digit in every split of both."""
    scores = []
    for folder in (first, second):
        main = read_csv(folder / "tables" / "main.csv")
        own = main[main["protocol"].eq(main["protocol"].iloc[0])]
        scores.append(own.set_index([*_KEY, "dataset", "split"])[["giou", "ciou"]])
    ours, theirs = scores[0].align(scores[1], join="inner", axis=0)
    alike = ours.eq(theirs).all(axis=1).groupby(level=_KEY).all()
    return alike[alike].index.to_frame(index=False)


def agreement(first: Path, second: Path) -> Agreement:
    """Of two runs, by the first protocol of each.

    Args:
        first: ``results/<study>`` or ``results/reference/<study>``.
        second: another.

    Raises:
        ValueError: one has no tables; or they share fewer than three rows that each of them trained.
    """
    both = pd.concat({"first": trained_giou(first), "second": trained_giou(second)}, axis=1, join="inner")
    shared = len(both)
    same = _same_run(first, second).merge(both.index.to_frame(index=False))
    both = both.drop(index=list(same.itertuples(index=False, name=None)))
    if shared and both.empty:
        raise ValueError(
            f"all trained rows that {first} and {second} share ({shared}) score alike to the last digit: the "
            "same trained runs, not second ones; run the second with `share_runs: false` or in another clone"
        )
    if len(both) < 3:
        left_out = f", beside {len(same)} that are the same trained run" if len(same) else ""
        raise ValueError(
            f"{first} and {second} share {len(both)} trained rows{left_out}; three can be compared"
        )
    both["difference"] = both["second"] - both["first"]
    rho = stats.spearmanr(both["first"], both["second"]).statistic
    difference = both["difference"]
    sd = difference.std() / math.sqrt(2)
    return Agreement(both.reset_index(), difference.mean(), sd, float(rho), same)


def beyond(found: Agreement, half: float) -> pd.DataFrame:
    """The rows that moved, beside what moved all, by more than ``half``."""
    return found.rows[(found.rows["difference"] - found.shift).abs() > half]


def reruns(folder: Path) -> list[str]:
    """A sentence on each comparison that ``svp compare --out`` kept in ``folder``."""
    out = []
    for file in sorted(folder.glob("*.json")):
        kept = read_json(file)
        commits = " and ".join(side["commit"][:7] if side else "not kept" for side in kept["made_by"])
        machines = list(dict.fromkeys(side["device"] for side in kept["made_by"] if side))
        where = f", on {' and on '.join(machines)}" if machines else ""
        far = sorted(kept.get("rows", []), key=lambda row: -abs(row["difference"]))[:2]
        moved = [
            f"{row_label(*(row[key] for key in ROW_KEY), with_budget=True)} by {100 * row['difference']:+.1f}"
            for row in far
        ]
        farthest = f" Farthest moved {' and '.join(moved)}." if moved else ""
        out.append(
            f"Study `{kept['study']}` was run twice (commits {commits}){where}. {kept['told']}{farthest}"
        )
    return out
