"""A study as its file states it, its rows, and the runs that they become."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationInfo, field_validator, model_validator

from harness.config.models import ModelsConfig
from harness.config.names import AtLeastOne, Name, StudyName
from harness.config.recipe import ProtocolConfig, SuperpixelConfig, TrainingConfig, TuningConfig
from harness.data.options import ReferData, SyntheticData
from harness.strict import Strict

__all__ = ["BLOCKS", "SHARE", "Budget", "Row", "RunConfig", "StudyConfig"]

BLOCKS = ("data", "models", "superpixels", "training", "protocol")
SHARE = "1/[1-9][0-9]*"
Share = Annotated[str, Field(pattern=rf"^{SHARE}$")]
Budget = Annotated[int, Field(ge=1, strict=True)] | Share | None


class Row(Strict):
    """One row of the comparison: a projector (or control) at a budget, in a variant.

    Attributes:
        name: a projector's name, ``module:Class`` or ``path/to/file.py``.
        label: the name in tables where ``name`` is a path or a module (see :func:`checked_name`).
        variant: distinguishes rows of one projector (see :func:`checked_name`).
        budget: visual tokens, or a share of the patches (``1/4``); ``None`` is the projector's default or
            adaptive. Of a list each makes a row.
        full_budgets: further ones, left out at ``effort: quick``.
        config: the projector's own options.
        set: flat deltas of this row alone, as in the study's ``set``.
        of: for a control that acts on a finished run: that row's projector, ``projector.variant``, or
            ``projector.variant.budget`` where there are several.
    """

    name: str
    label: Name | None = None
    variant: Name = "base"
    budget: Budget | tuple[Budget, ...] = None
    full_budgets: tuple[Budget, ...] = ()
    config: dict[str, Any] = {}
    set: dict[str, Any] = {}
    of: str | None = None

    @field_validator("budget", "full_budgets", mode="before")
    @classmethod
    def _is_budget(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "budget" and isinstance(value, list | tuple) and not value:
            raise ValueError("an empty list makes no row; leave the key out for the projector's own budget")
        for each in value if isinstance(value, list | tuple) else (value,):
            share = isinstance(each, str) and re.fullmatch(SHARE, each)
            count = isinstance(each, int) and not isinstance(each, bool) and each >= 1
            if not (share or count or each is None):
                raise ValueError(
                    f"{each!r} is no budget; give a whole number of tokens, such as 36, or a share of the "
                    "patches, such as 1/4"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class StudyConfig(Strict):
    """What is studied; every key of ``config/*.yaml``.

    Attributes:
        study: name, and the folder under ``results/``.
        title: one line above the tables.
        notes: sentences printed under the tables (what the data is, what it cannot show).
        tiny_notes: further ones, which hold for the tiny models only.
        effort: ``quick`` applies ``config/parts/effort/quick.yaml``, takes the default
            learning rate (but see ``tuning.at_quick``), leaves out ``full_seeds`` and ``full_budgets``, and
            the tables say so.
        data, models, superpixels, training, protocol: parts by name.
        rows: what is compared, in the order of the table.
        seeds: repetitions.
        full_seeds: further ones, left out at ``effort: quick``.
        tuning: the learning-rate search; without, rows train at the recipe's rate.
        splits: ``dataset/split`` to evaluate; empty means all but ``train``.
        set: flat deltas, ``block.key: value``.
        bootstrap_resamples: resamples of the image-clustered intervals.
        tracking_uri: MLflow store; empty means the server of ``MLFLOW_TRACKING_URI``, else
            ``sqlite:///<results>/mlflow.db``.
        results: root of all results.
        share_runs: whether a run that another study of these results or an earlier row has trained is taken.
        reference_row: the row that speed-ups are relative to, by a name of it as ``of`` takes.
    """

    study: StudyName = "default"
    title: str = ""
    notes: tuple[str, ...] = ()
    tiny_notes: tuple[str, ...] = ()
    effort: Literal["quick", "full"] = "full"
    data: str
    models: str
    superpixels: str
    training: str
    protocol: str
    rows: tuple[Row, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    full_seeds: tuple[int, ...] = ()
    tuning: TuningConfig | None = None
    splits: tuple[str, ...] = ()
    set: dict[str, Any] = {}
    bootstrap_resamples: AtLeastOne = 2000
    tracking_uri: str = ""
    results: str = "results"
    share_runs: bool = True
    reference_row: str = "mlp"

    @field_validator("rows", mode="before")
    @classmethod
    def _some_rows(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            raise ValueError("no row is named; list one at least, such as 'mlp'")
        if isinstance(value, str):
            raise ValueError(f"'{value}' is no list; write [{value}]")
        return value

    @field_validator("seeds", "full_seeds", mode="before")
    @classmethod
    def _different_seeds(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f"{value} is no list; write [{value}] for this seed, or [0, 1, 2] for three")
        if isinstance(value, list | tuple) and (twice := [x for x in value if value.count(x) > 1]):
            raise ValueError(f"{twice[0]} stands twice; each repetition needs a seed of its own")
        return value


class RunConfig(Strict):
    """One fully resolved run: everything that can change its numbers, and nothing else."""

    study: str
    projector: str
    source: str
    variant: str
    budget: int | None
    seed: int
    kind: str
    acts_on: Literal["training", "run", "superpixels"]
    of: str | None = None
    needs: tuple[str, ...]
    config: dict[str, Any]
    data: Annotated[SyntheticData | ReferData, Field(discriminator="kind")]
    models: ModelsConfig
    superpixels: SuperpixelConfig | None
    training: TrainingConfig
    protocol: ProtocolConfig
    splits: tuple[str, ...]
    held_out_images: int = 0

    @property
    def row(self) -> str:
        """``projector.variant.budget``: what its repetitions share."""
        return f"{self.projector}.{self.variant}.{self.budget or 'auto'}"

    @property
    def id(self) -> str:
        """``projector.variant.budget.sSEED``; a trial of the learning-rate search also says its rate."""
        trial = f"-lr{self.training.learning_rate:g}" if self.held_out_images else ""
        return f"{self.row}.s{self.seed}{trial}"
