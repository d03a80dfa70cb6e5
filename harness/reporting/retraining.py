"""What training again changes: the spread of a row between seeds, which no interval over images holds."""

from __future__ import annotations

import math
from pathlib import Path
from typing import NamedTuple

from scipy import stats

from harness.reporting.context import read_csv

__all__ = ["Retraining", "retraining"]


class Retraining(NamedTuple):
    """How far training a row again, from another seed, moves its mean gIoU.

    Attributes:
        sd: of one row between seeds, pooled over rows.
        freedom: degrees of freedom behind it.
    """

    sd: float
    freedom: int

    @property
    def half(self) -> float:
        """Of the 95 % interval of a difference of two rows trained once (Student's t)."""
        return float(stats.t.ppf(0.975, self.freedom)) * math.sqrt(2) * self.sd

    @property
    def told(self) -> str:
        """In words, in points of gIoU."""
        return (
            "Rows are trained once; between the seeds of study [seeds](seeds/tables/main.md) a row's mean "
            f"gIoU has a standard deviation of {100 * self.sd:.2f} points ({self.freedom} degrees of "
            f"freedom), which leaves a difference of two rows open by ±{100 * self.half:.1f}."
        )


def retraining(snapshot: Path) -> Retraining | None:
    """From a study of several seeds; ``None`` without one."""
    file = snapshot / "tables" / "overall.csv"
    if not file.is_file():
        return None
    rows = read_csv(file)
    rows = rows[rows["protocol"].eq(rows["protocol"].iloc[0]) & (rows["seed_count"] > 1)]
    freedom = rows["seed_count"].astype(int) - 1
    if rows.empty:
        return None
    return Retraining(math.sqrt((freedom * rows["giou_sd"] ** 2).sum() / freedom.sum()), int(freedom.sum()))
