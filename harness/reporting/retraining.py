"""What another run would change, which no interval over images holds: seeds, encoders, machines."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, NamedTuple

from scipy import stats

from harness.reporting.agreement import reruns, trained_giou
from harness.reporting.context import read_csv, row_label

__all__ = ["Retraining", "pretrained_again", "retraining", "training_half", "variability", "widened"]


class Retraining(NamedTuple):
    """How far training a row again, from another seed, moves its mean gIoU.

    Attributes:
        sd: of one row between seeds, pooled over rows.
        freedom: degrees of freedom behind it.
    """

    sd: float
    freedom: int

    def half(self, seeds: int = 1) -> float:
        """Of the 95 % interval of a difference of two rows, each a mean of ``seeds`` (Student's t)."""
        return float(stats.t.ppf(0.975, self.freedom)) * math.sqrt(2 / seeds) * self.sd

    @property
    def told(self) -> str:
        """In words, in points of gIoU."""
        return (
            "Rows are trained once; between the seeds of study [seeds](seeds/tables/main.md) a row's mean "
            f"gIoU has a standard deviation of {100 * self.sd:.2f} points ({self.freedom} degrees of "
            f"freedom), which leaves a difference of two rows open by ±{100 * self.half():.1f}."
        )


def retraining(snapshot: Path) -> Retraining | None:
    """From a study of several seeds; ``None`` without one."""
    file = snapshot / "tables" / "overall.csv"
    if not file.is_file():
        return None
    rows = read_csv(file)
    rows = rows[rows["protocol"].eq(rows["protocol"].iloc[0]) & (rows["seed_count"] > 1)]
    # a row that no seed moves was not trained; one that failed has no spread
    rows = rows[rows["giou_sd"] > 0]
    freedom = rows["seed_count"].astype(int) - 1
    if rows.empty:
        return None
    return Retraining(math.sqrt((freedom * rows["giou_sd"] ** 2).sum() / freedom.sum()), int(freedom.sum()))


def training_half(snapshot: Path, seeds: Path | None = None) -> float | None:
    """What training again leaves open of a difference of two rows, to either side (95 %).

    Args:
        snapshot: of the study, or the study itself; its own seeds say it where it has several.
        seeds: of the study of several seeds that says it else; where neither does, nobody knows.
    """
    again = retraining(snapshot) or (retraining(seeds) if seeds is not None else None)
    if again is None:
        return None
    return again.half(int(read_csv(snapshot / "tables" / "overall.csv")["seed_count"].min()))


def widened(value: float, low: float, high: float, half: float) -> tuple[float, float]:
    """A 95 % interval with another, independent one that reaches ``half`` to either side."""
    return value - math.hypot(value - low, half), value + math.hypot(high - value, half)


def pretrained_again(snapshot: Path) -> str | None:
    """How far encoders pretrained again moved each row, in words; ``None`` without such a study.

    Args:
        snapshot: of study ``pretraining``: rows on the first encoders, and as variant ``again`` on others.
    """
    if not (snapshot / "tables" / "main.csv").is_file():
        return None
    giou: dict[Any, float] = trained_giou(snapshot).to_dict()
    moved = [
        f"{row_label(projector, 'base', budget, with_budget=True)} by "
        f"{100 * (giou[projector, 'again', budget] - value):+.1f}"
        for (projector, variant, budget), value in giou.items()
        if variant == "base" and (projector, "again", budget) in giou
    ]
    return (
        "Rows of a study share one pretraining. Encoders pretrained from another seed (study "
        f"[pretraining](pretraining/tables/main.md)) moved {', '.join(moved)} points. Vision encoder, "
        "language model, SAM and start changed together, so this does not say which of them counts. No "
        "interval here holds it."
    )


def variability(reference: Path) -> list[str]:
    """What the snapshots know of their own rerun: a paragraph each on seeds, encoders and whole reruns.

    Args:
        reference: ``results/reference``.
    """
    again = retraining(reference / "seeds")
    told = [again.told if again else None, pretrained_again(reference / "pretraining")]
    return [f"{text}\n" for text in (*told, *reruns(reference / "reruns")) if text]
