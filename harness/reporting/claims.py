"""The paper's claims held against committed snapshots, one verdict each; a claim is never assumed."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal, NamedTuple

import pandas as pd
import yaml
from pydantic import BaseModel, ConfigDict, ValidationError, model_validator

from harness.files import read_json
from harness.reporting.aggregate import DIFFERENCE_COLUMNS, differences_to
from harness.reporting.context import ROW_KEY, ReportContext, read_csv, row_label, write_text
from harness.reporting.retraining import retraining, training_half, variability, widened

__all__ = ["Check", "Claim", "Finding", "claims_page", "find", "rank_interval", "read_claims", "write_claims"]

_HEAD = """# The paper's claims, held against the snapshots

Written by `svp snapshot` from `results/published/claims.yaml` and the tables of the snapshots; no number that
was found is typed. A claim is *reproduced here* where the whole 95 % interval lies at or above its bar, *not
reproduced here* where it lies below, and *not told apart* where the bar lies inside. Here means: on synthetic
scenes, with tiny models, at the effort and on the device named below. It says nothing about RefCOCO.
"""
_MEASURES = {
    "giou": "gIoU minus {other}",
    "false_positives_saved": "share of predicted pixels outside the target, {other} minus this",
    "tokens_saved": "visual tokens saved against {other}",
    "training_saved": "time of a training step saved against {other}",
    "inference_saved": "time of inference saved against {other}",
    "tokens_follow_objects": "Spearman's ρ of tokens with objects",
}
# measures that are paired differences: their metric, and whether more of it is better
_PAIRED = {"giou": ("giou", True), "false_positives_saved": ("fp_share", False)}
# table and column of each measure
_SOURCES = {
    **{name: ("differences.csv", DIFFERENCE_COLUMNS[metric][0]) for name, (metric, _) in _PAIRED.items()},
    "tokens_saved": ("overall.csv", "tokens_mean"),
    "training_saved": ("main.csv", "speedup_train"),
    "inference_saved": ("main.csv", "speedup_infer"),
    "tokens_follow_objects": ("tokens.csv", "spearman_rho"),
}
_Row = tuple[str, str, str]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Check(_Strict):
    """How a claim is measured.

    Attributes:
        measure: of ``row``, against ``minus`` where it is a comparison.
        study: the snapshot.
        row: ``projector.variant.budget``.
        minus: rows to compare with; of several the nearest decides, as far as the least certain allows.
        at_least: the bar, a fraction.
    """

    measure: Literal[
        "giou",
        "false_positives_saved",
        "tokens_saved",
        "training_saved",
        "inference_saved",
        "tokens_follow_objects",
    ]
    study: str
    row: str
    minus: tuple[str, ...] = ()
    at_least: float

    @model_validator(mode="after")
    def _compared(self) -> Check:
        if bool(self.minus) == (self.measure == "tokens_follow_objects"):
            raise ValueError(f"{self.measure} {'compares with no row' if self.minus else 'needs minus'}")
        return self


class Claim(_Strict):
    """A claim with its test, or the reason why it has none here.

    Attributes:
        claim: in words.
        published: what was published of it.
        test: how it is measured.
        reason: why it is not.
        caveat: what a reader must know of the test.
    """

    claim: str
    published: str
    test: Check | None = None
    reason: str = ""
    caveat: str = ""

    @model_validator(mode="after")
    def _tested_or_not(self) -> Claim:
        if (self.test is None) != bool(self.reason):
            raise ValueError(f"'{self.claim}' needs a test or a reason, and not both")
        return self


class Finding(NamedTuple):
    """What was measured, with its interval; equal bounds where it has none."""

    value: float
    low: float
    high: float
    against: str

    def widened(self, half: float) -> Finding:
        """With another, independent 95 % interval ``half`` wide to either side."""
        low, high = widened(self.value, self.low, self.high, half)
        return self._replace(low=low, high=high)

    def turned(self) -> Finding:
        """The difference the other way round."""
        return self._replace(value=-self.value, low=-self.high, high=-self.low)

    def verdict(self, at_least: float) -> str:
        """In words; two rows that answered every expression alike tell nothing."""
        if self.against and self.value == self.low == self.high == 0:
            return "not measured here: the two rows answer alike"
        if self.low >= at_least:
            return "reproduced here"
        return "not reproduced here" if self.high < at_least else "not told apart"


def read_claims(path: Path | str) -> list[Claim]:
    """The claims of a YAML file.

    Raises:
        ValueError: it is not a list of claims; the message says where.
    """
    value = yaml.safe_load(Path(path).read_text())
    if not isinstance(value, list):
        raise ValueError(f"{path} must hold a list of claims")
    claims = []
    for number, item in enumerate(value, start=1):
        try:
            claims.append(Claim.model_validate(item))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise ValueError(f"{path}: claim {number}: {place}: {first['msg']}") from error
    return claims


def _key(row: str) -> _Row:
    projector, variant, budget = [*row.split("."), "", ""][:3]
    return projector, variant or "base", budget or "auto"


def _one(table: pd.DataFrame, row: _Row, where: str) -> pd.Series:
    found = table[(table[list(ROW_KEY)].astype(str) == list(row)).all(axis=1)]
    if found.empty:
        raise ValueError(f"{where} has no row {'.'.join(row)}")
    return found.iloc[0]


def _label(row: _Row) -> str:
    return row_label(*row, with_budget=True)


def find(test: Check, snapshot: Path) -> Finding:
    """Measure in the tables of ``results/reference/<study>``.

    Raises:
        ValueError: a row, or its measurement, is not there.
    """
    tables, row = snapshot / "tables", _key(test.row)
    overall = read_csv(tables / "overall.csv")
    protocol = overall["protocol"].iloc[0]
    overall = overall[overall["protocol"].eq(protocol)]
    if test.measure == "tokens_follow_objects":
        told = _one(read_csv(tables / "tokens.csv"), row, f"{tables}/tokens.csv")
        return Finding(*rank_interval(float(told["spearman_rho"]), int(told["n_images"])), "")
    others = [_key(name) for name in test.minus]
    if test.measure in _PAIRED:
        metric, more = _PAIRED[test.measure]
        pairs = read_csv(tables / "differences.csv")
        gaps = differences_to(pairs[pairs["protocol"].eq(protocol)], row, metric)
        missing = [other for other in others if other not in gaps]
        if missing:
            raise ValueError(f"{tables}/differences.csv has no pair of {test.row} and {'.'.join(missing[0])}")
        # the table holds the other minus the row
        found = [Finding(*gaps[o][:3], _label(o)) for o in others]
        undefined = [f.against for f in found if math.isnan(f.low + f.high)]
        if undefined:
            column = _SOURCES[test.measure][1]
            raise ValueError(f"{tables}/differences.csv has no {column} of {test.row} and {undefined[0]}")
        return _nearest([f.turned() for f in found] if more else found)
    values = []
    for other in others:
        if test.measure == "tokens_saved":
            ours, theirs = (_one(overall, r, f"{tables}/overall.csv")["tokens_mean"] for r in (row, other))
            saved = 1 - ours / theirs
            values.append(Finding(saved, saved, saved, _label(other)))
        else:
            main = read_csv(tables / "main.csv")
            ours, theirs = (_speed(_one(main, r, f"{tables}/main.csv"), test.measure) for r in (row, other))
            saved = (1 - t / o for o, t in zip(ours, reversed(theirs), strict=True))
            low, value, high = saved
            values.append(Finding(value, low, high, _label(other)))
    if any(math.isnan(f.value) for f in values):
        raise ValueError(f"{tables}/main.csv has no {_SOURCES[test.measure][1]} of {test.row}")
    return _nearest(values)


def _nearest(found: list[Finding]) -> Finding:
    """The smallest of several gains; its interval ends where the least of theirs do.

    So a claim to be better than all is not won against a rival that is a little further off and less
    certain.
    """
    nearest = min(found)
    return nearest._replace(low=min(f.low for f in found), high=min(f.high for f in found))


def _speed(row: pd.Series, measure: str) -> tuple[float, float, float]:
    """Lowest, median and highest speed-up of a row, over photographs or rounds; one in older snapshots."""
    column = _SOURCES[measure][1]
    low, high = (float(row.get(f"{column}_{end}", math.nan)) for end in ("low", "high"))
    value = float(row[column])
    return (value, value, value) if math.isnan(low) else (low, value, high)


def rank_interval(rho: float, count: int) -> tuple[float, float, float]:
    """95 % interval of Spearman's rho by Fisher's z, with Bonett and Wright's (2000) variance."""
    half = 1.96 * math.sqrt((1 + rho * rho / 2) / (count - 3))
    z = math.inf * rho if abs(rho) == 1 else math.atanh(rho)
    return rho, math.tanh(z - half), math.tanh(z + half)


def _said(test: Check, finding: Finding) -> tuple[str, str]:
    """The finding and its bar, in the measure's unit."""
    if test.measure == "tokens_follow_objects":
        return f"{finding.value:.2f} [{finding.low:.2f}, {finding.high:.2f}]", f"{test.at_least:.2f}"
    unit, sign = ("", "+") if test.measure in _PAIRED else (" %", "")
    text = f"{100 * finding.value:{sign}.1f}{unit}"
    if finding.low != finding.high:
        text += f" [{100 * finding.low:{sign}.1f}, {100 * finding.high:{sign}.1f}]"
    return text, f"{100 * test.at_least:{sign}.1f}{unit}"


def _unmeasured(claim: Claim, reference: Path) -> str:
    """Why a claim has no verdict; empty where it has one."""
    if claim.test is None:
        return claim.reason
    tables = reference / claim.test.study / "tables"
    if not (tables / "overall.csv").is_file():
        return f"study {claim.test.study} has no snapshot"
    file, column = _SOURCES[claim.test.measure]
    if column not in read_csv(tables / file):  # made before the column was
        return f"not in this snapshot: the {file} of study {claim.test.study} lacks {column}"
    return ""


def claims_page(claims: list[Claim], reference: Path) -> str:
    """The scorecard in Markdown.

    Args:
        claims: what is claimed.
        reference: ``results/reference``; a study without a snapshot there leaves its claims unmeasured,
            and so does a snapshot that is older than the column that a claim is measured by.
    """
    again = retraining(reference / "seeds")
    lines = ["| claim | published | measured here | at least | found | verdict |"]
    lines.append("|:---|:---|:---|---:|---:|:---|")
    studies: dict[str, None] = {}
    widened: dict[str, str] = {}
    for claim in claims:
        test = claim.test
        reason = _unmeasured(claim, reference)
        if test is None or reason:
            lines.append(f"| {claim.claim} | {claim.published} | {reason} | – | – | not measured here |")
            continue
        studies[test.study] = None
        finding = find(test, reference / test.study)
        half = training_half(reference / test.study, reference / "seeds")
        if half is not None and test.measure == "giou" and finding.low < finding.high:
            finding = finding.widened(half)
            widened[test.study] = f"; gIoU intervals widened by ±{100 * half:.1f} for training again"
        what = _MEASURES[test.measure].format(other=finding.against)
        how = f"{what}, of {_label(_key(test.row))} in [{test.study}]({test.study}/tables/main.md)"
        how += f" ({claim.caveat})" if claim.caveat else ""
        value, bar = _said(test, finding)
        verdict = finding.verdict(test.at_least)
        lines.append(f"| {claim.claim} | {claim.published} | {how} | {bar} | {value} | **{verdict}** |")
    made = []
    for study in studies:
        by = read_json(reference / study / "provenance.json")
        effort = ReportContext.checked(read_json(reference / study / "tables" / "context.json")).effort
        told = f"- {study}: effort {effort}, commit {by['commit'][:7]}, on {by['device']}"
        made.append(told + widened.get(study, ""))
    spread = variability(reference)
    if again:
        spread[0] = f"Intervals of gIoU hold what training again would change too. {spread[0]}"
    return "\n".join([_HEAD, *spread, *lines, "", *made]) + "\n"


def write_claims(reference: Path, claims: Path) -> Path:
    """Write ``claims.md`` over the snapshots in ``reference``."""
    out = reference / "claims.md"
    write_text(out, claims_page(read_claims(claims), reference))
    return out
