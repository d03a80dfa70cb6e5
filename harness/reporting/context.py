"""What the tables and figures must know of a study beside its rows, and how their files are written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import pandas as pd
from pydantic import BaseModel, ConfigDict, ValidationError

from harness.files import atomic_path, read_json

__all__ = [
    "ROW_KEY",
    "EfficiencyReport",
    "ReportContext",
    "canonical_context",
    "order_rows",
    "read_csv",
    "read_efficiency",
    "records",
    "row_label",
    "split_order",
    "write_csv",
    "write_text",
]

ROW_KEY = ("projector", "variant", "budget")
_SPLITS = ("train", "val", "testA", "testB", "test")


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ReportContext(_Strict):
    """What a reader of the tables must be told.

    Attributes:
        study: the study's name.
        title: one line above the tables.
        data: ``synthetic`` scenes or ``real`` photographs; decides captions and what may be committed.
        effort: ``quick`` is said in every caption.
        notes: sentences under the tables: superpixel source, provenance of the encoders.
        order: projectors in the order of the config; others follow by name.
        variants: their variants in the order of the config; others follow by name.
        controls: projectors that stand in a group of their own and are never ranked.
        reference: the row that speed-ups are relative to, as tables call it, with its budget; where only a
            projector is named, its first in the config.
        resamples: bootstrap resamples.
        tuning: the grid of the learning-rate search, in factors of the recipe's; empty where there was none.
        published: folder of published numbers to print apart; never beside synthetic data.
    """

    study: str
    title: str = ""
    data: Literal["synthetic", "real"]
    effort: Literal["quick", "full"] = "full"
    notes: tuple[str, ...] = ()
    order: tuple[str, ...] = ()
    variants: tuple[str, ...] = ()
    controls: tuple[str, ...] = ()
    reference: str | None = None
    resamples: int = 2000
    tuning: tuple[float, ...] = ()
    published: str | None = None

    @classmethod
    def from_study(cls, config: Mapping[str, Any], **more: Any) -> ReportContext:
        """From the value in ``results/<study>/config.json``; ``more`` overrides fields.

        Raises:
            ValueError: a field is missing or unknown.
        """
        study, runs = config["study"], config["runs"]
        names = list(dict.fromkeys(run["projector"] for run in runs))
        controls = {run["projector"] for run in runs if run.get("kind") == "control"}
        values = {
            "study": study["study"],
            "title": study.get("title", ""),
            "data": "synthetic" if all(run["data"]["kind"] == "synthetic" for run in runs) else "real",
            "effort": study.get("effort", "full"),
            "notes": tuple(study.get("notes", ())),
            "order": tuple(names),
            "variants": tuple(dict.fromkeys(run["variant"] for run in runs)),
            "controls": tuple(n for n in names if n in controls),
            "reference": _reference(study.get("reference_row"), runs),
            "resamples": study.get("bootstrap_resamples", 2000),
            "tuning": tuple((study.get("tuning") or {}).get("factors", ())),
            **more,
        }
        return cls.checked(values)

    @classmethod
    def checked(cls, value: Mapping[str, Any] | ReportContext) -> ReportContext:
        """From a mapping.

        Raises:
            ValueError: a key is unknown, missing or of the wrong kind; one sentence.
        """
        if isinstance(value, ReportContext):
            return value
        try:
            return cls.model_validate(dict(value))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise ValueError(f"report context: {place}: {first['msg']}") from error


def _reference(name: str | None, runs: Sequence[Mapping[str, Any]]) -> str | None:
    """A row's name in a study, such as ``svp.baseline``, as its label in a table: ``svp (baseline)``."""
    for run in runs:
        named, budget = f"{run['projector']}.{run['variant']}", str(run.get("budget") or "auto")
        called = [named, f"{named}.{budget}"]
        if name in called or (run["variant"] == "base" and name == run["projector"]):
            return row_label(run["projector"], run["variant"], budget, with_budget=True)
    return name


class _Timing(_Strict):
    projector: str
    variant: str
    budget: str
    stage: str
    case: str
    batch: int
    median_ms: float | None
    iqr_ms: float | None = None
    flops: float | None = None
    bound_ms: float | None = None
    roofline_fraction: float | None = None
    peak_bytes: float | None = None
    device: str
    dtype: str
    attention: str


class _Parameters(_Strict):
    projector: str
    variant: str
    budget: str
    parameters: int
    layer_tokens: float | None = None
    step_budgets: int = 1


class _Relative(_Strict):
    projector: str
    variant: str
    budget: str
    speedup_infer: float | None
    speedup_infer_low: float | None = None
    speedup_infer_high: float | None = None
    speedup_train: float | None
    speedup_train_low: float | None = None
    speedup_train_high: float | None = None


class EfficiencyReport(_Strict):
    """One file of the efficiency stage: timings, trainable parameters, speed relative to the reference."""

    rows: tuple[_Timing, ...]
    parameters: tuple[_Parameters, ...] = ()
    relative: tuple[_Relative, ...] = ()


def read_efficiency(paths: Sequence[Path | str]) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """``(timings, parameters, relative)`` of several efficiency files, in the order of the files.

    Raises:
        ValueError: a file does not keep the agreed form, or two give the same row.
    """
    parts: dict[str, list[dict]] = {"rows": [], "parameters": [], "relative": []}
    for path in sorted(map(str, paths)):
        try:
            report = EfficiencyReport.model_validate(read_json(path))
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(p) for p in first["loc"])
            raise ValueError(f"{path}: {place}: {first['msg']}; run the efficiency stage again") from error
        for name, rows in parts.items():
            rows += [row.model_dump() for row in getattr(report, name)]
    keys = {"rows": [*ROW_KEY, "stage", "case", "batch", "device"]}
    models: dict[str, type[BaseModel]] = {"rows": _Timing, "parameters": _Parameters, "relative": _Relative}
    frames = []
    for name, rows in parts.items():
        frame = pd.DataFrame(rows, columns=list(models[name].model_fields))
        key = keys.get(name, list(ROW_KEY))
        if frame.duplicated(key).any():
            first_row = frame[frame.duplicated(key)].iloc[0]
            raise ValueError(
                f"the efficiency files give {name} of {'.'.join(first_row[list(ROW_KEY)])} twice; keep one"
            )
        frames.append(frame)
    return frames[0], frames[1], frames[2]


def _budget_rank(budget: str) -> float:
    return -float(budget) if budget.isdigit() else float("-inf")


def split_order(pairs: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """``(dataset, split)`` pairs by dataset, then train, val, testA, testB, test, then others by name."""
    rank = {name: k for k, name in enumerate(_SPLITS)}
    return sorted(set(pairs), key=lambda p: (p[0], rank.get(p[1], len(rank)), p[1]))


def order_rows(frame: pd.DataFrame, context: ReportContext) -> pd.DataFrame:
    """Rows in the config's order of projectors, then of variants, then budget (own, largest first)."""
    place = {name: k for k, name in enumerate(context.order)}
    variant = {name: k for k, name in enumerate(context.variants)}
    keyed = frame.assign(
        _place=[place.get(p, len(place)) for p in frame["projector"]],
        _variant=[variant.get(v, len(variant)) for v in frame["variant"]],
        _budget=[_budget_rank(str(b)) for b in frame["budget"]],
    )
    columns = ["_place", "projector", "_variant", "variant", "_budget"]
    ranked = keyed.sort_values(columns, kind="stable", ignore_index=True)
    return ranked.drop(columns=["_place", "_variant", "_budget"])


def row_label(projector: str, variant: str, budget: str, *, with_budget: bool = False) -> str:
    """A row's name for people: the variant only where it is not ``base``, the budget only if asked."""
    label = projector if variant == "base" else f"{projector} ({variant})"
    return f"{label} @{budget}" if with_budget and budget != "auto" else label


def records(frame: pd.DataFrame) -> list[Any]:
    """The rows as named tuples."""
    return list(frame.itertuples(index=False))


def write_csv(path: Path | str, frame: pd.DataFrame, float_format: str = "%.6f") -> None:
    """Write a table atomically; equal frames give equal bytes on every platform."""
    with atomic_path(path) as aside:
        frame.to_csv(aside, index=False, float_format=float_format, lineterminator="\n")


def write_text(path: Path | str, text: str) -> None:
    """Write text atomically, with one newline at its end."""
    with atomic_path(path) as aside:
        aside.write_text(text.rstrip("\n") + "\n", encoding="utf-8")


def read_csv(path: Path | str) -> pd.DataFrame:
    """Read a table that :func:`write_csv` wrote; budgets stay text, and only empty cells are missing.

    Raises:
        ValueError: it is not there.
    """
    if not Path(path).is_file():
        raise ValueError(f"{path} is not there; name the folder of a finished study, such as results/default")
    keys = (*ROW_KEY, *(f"other_{key}" for key in ROW_KEY), "dataset", "split", "protocol")
    text = dict.fromkeys(keys, str)
    return pd.read_csv(path, dtype=text, keep_default_na=False, na_values=[""])  # type: ignore[arg-type]


def canonical_context(context: ReportContext) -> str:
    """The context as indented JSON, to be kept beside the tables."""
    return json.dumps(context.model_dump(mode="json"), indent=2, sort_keys=True, ensure_ascii=False)
