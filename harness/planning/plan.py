"""The plan of a study: every run, every shared artefact, every path. No torch.

The Snakefile asks this module for its file names and hands each job a key; the job reads the
resolved study back from ``results/<study>/config.json``. What shared artefacts (data, pretrained tiny
models, superpixels, frozen features) are called stands in :mod:`harness.planning.keys`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.config import ConfigError, RunConfig, StudyConfig
from harness.config.resolve import load_study, read_study, resolve_study, row_names, rows_called
from harness.data.options import ReferData, expand_root
from harness.files import read_json, write_json
from harness.planning.keys import Keys, SharedStage, is_pretrained, pretrained, source_of
from harness.planning.layout import Layout
from harness.planning.weight_sources import (
    expand_source,
    local_weights,
    projector_weights,
    superpixel_weights,
)
from harness.plugins.discovery import nearest

__all__ = ["Plan"]


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


class Plan(Layout):
    """A resolved study; where its files lie, :class:`Layout` says.

    Attributes:
        trials: runs of the learning-rate search by row, by id; empty without a search.
    """

    def __init__(self, study: StudyConfig, runs: list[RunConfig]):
        """From a checked study and its resolved runs (see :meth:`from_raw`, :meth:`load`)."""
        self.study = study
        self.runs = {run.id: run for run in runs}
        self.trials = self._trials()
        self._keys: dict[str, Keys] = {}

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any], root: Path | str = ".") -> Plan:
        """From Snakemake's ``config`` mapping.

        Raises:
            harness.config.ConfigError: something in it cannot be run.
        """
        study = load_study(raw)
        return cls(study, resolve_study(study, root))

    @classmethod
    def named(cls, study: Sequence[Path] | None, data_root: str | None = None) -> Plan:
        """From study files as a command line names them; none: ``config/default.yaml``.

        Args:
            study: files of ``config/``, merged onto ``config/default.yaml`` in their order.
            data_root: folder of the raw data, in place of the study's.

        Raises:
            harness.config.ConfigError: something in it cannot be run.
        """
        return cls.from_raw(read_study(study or []) | ({} if data_root is None else {"data_root": data_root}))

    @classmethod
    def load(cls, path: Path | str) -> Plan:
        """From ``results/<study>/config.json``."""
        value = read_json(path)
        return cls(
            StudyConfig.model_validate(value["study"]), [RunConfig.model_validate(r) for r in value["runs"]]
        )

    def as_json(self) -> dict[str, Any]:
        """What :meth:`load` reads."""
        return {"study": _plain(self.study), "runs": [_plain(run) for run in self.runs.values()]}

    def save(self, path: Path | str) -> None:
        """Write the resolved study, atomically."""
        write_json(path, self.as_json())

    def _trials(self) -> dict[str, dict[str, RunConfig]]:
        tuning = self.study.tuning
        if tuning is None:
            return {}
        out: dict[str, dict[str, RunConfig]] = {}
        for run in self.trained:
            if run.seed != self.study.seeds[0]:
                continue
            steps = {
                name: max(1, round(tuning.steps * getattr(run.training, name)))
                for name in ("stage1_steps", "stage2_steps")
            }
            trials = [
                run.model_copy(
                    update={
                        "held_out_images": tuning.held_out_images,
                        "training": run.training.model_copy(update={**steps, "learning_rate": rate}),
                    }
                )
                for rate in (float(f"{f * run.training.learning_rate:.3g}") for f in tuning.factors)
            ]
            out[run.row] = {trial.id: trial for trial in trials}
        return out

    def trial(self, row: str) -> RunConfig:
        """A trial of a row's search; all of them read the same files."""
        return next(iter(self.trials[row].values()))

    @cached_property
    def trainable(self) -> dict[str, RunConfig]:
        """Every run that is trained, trials of the learning-rate search included, by id."""
        trials = {id_: trial for row in self.trials.values() for id_, trial in row.items()}
        return {**self.runs, **trials}

    @cached_property
    def _siblings(self) -> dict[tuple[str, int | None, int], list[RunConfig]]:
        siblings: dict[tuple[str, int | None, int], list[RunConfig]] = {}
        for run in self.trainable.values():
            if run.acts_on == "training":
                siblings.setdefault((run.projector, run.budget, run.seed), []).append(run)
        return siblings

    def siblings(self, run: RunConfig) -> list[RunConfig]:
        """What is trained with a run's projector, budget and seed, trials and the run included, in order."""
        return self._siblings.get((run.projector, run.budget, run.seed), [])

    def learning_rate(self, run: RunConfig) -> float:
        """What a run is trained at: the rate that its row's search chose, or the recipe's."""
        if run.row not in self.trials:
            return run.training.learning_rate
        return float(read_json(self.choice_file(run.row))["learning_rate"])

    def tuned(self, run: RunConfig) -> RunConfig:
        """The run at its :meth:`learning_rate`; a trial as it stands."""
        if run.held_out_images:
            return run
        rate = {"learning_rate": self.learning_rate(run)}
        return run.model_copy(update={"training": run.training.model_copy(update=rate)})

    # --- who needs what --------------------------------------------------------------------------

    @property
    def trained(self) -> list[RunConfig]:
        """Runs that are trained (not controls that act at prediction time)."""
        return [r for r in self.runs.values() if r.acts_on == "training"]

    @property
    def timed(self) -> list[RunConfig]:
        """The trained rows, each by its first seed: another one takes as long."""
        return [run for run in self.trained if run.seed == self.study.seeds[0]]

    @property
    def overlay_runs(self) -> list[RunConfig]:
        """The first projectors of the table on the same data, drawn side by side on the same photographs."""
        chosen = [run for run in self.timed if run.kind == "projector"] or self.timed
        return [run for run in chosen if run.data == chosen[0].data][:3]

    def run_named(self, name: str) -> RunConfig:
        """The run called so by its id, or the first of that row (:func:`harness.config.resolve.row_names`).

        Raises:
            ConfigError: there is none, and the message names the nearest, or the name means several rows.
        """
        runs = list(self.runs.values())
        if name in self.runs:
            return self.runs[name]
        found = rows_called(name, runs)
        if len(found) > 1:
            raise ConfigError(f"'{name}' may mean {', '.join(found)}; name one of them")
        if not found:
            known = [each for run in runs for each in (*row_names(run), run.id)]
            raise ConfigError(f"study '{self.study.study}' has no row '{name}'{nearest(name, known)}")
        return next(run for run in runs if run.row == found[0])

    def base_run(self, run: RunConfig) -> RunConfig:
        """The trained run whose weights a run predicts with (itself, or the one its control acts on)."""
        if run.acts_on != "run":
            return run
        for other in self.trained:
            if run.of in row_names(other) and other.seed == run.seed:
                return other
        raise ValueError(f"{run.id} acts on '{run.of}', which is not trained in this study")

    def keys(self, run: RunConfig) -> Keys:
        """Names of the shared artefacts that a run uses."""
        kept = self._keys.get(run.id)
        if kept is None or kept.run != run:
            kept = self._keys[run.id] = Keys(run)
        return kept

    @cached_property
    def _owners(self) -> dict[str, RunConfig]:
        owners: dict[str, RunConfig] = {}
        for run in self.runs.values():
            for _, key in self.keys(run).stages:
                owners.setdefault(key, run)
        return owners

    @property
    def shared_stages(self) -> list[tuple[SharedStage, str]]:
        """Stage and key of every shared artefact that training needs, each after what it is made from."""
        return list(dict.fromkeys(step for run in self.trained for step in self.keys(run).stages))

    def owner(self, key: str) -> RunConfig:
        """A run that uses the shared artefact called ``key`` (all of them define it alike).

        Raises:
            ValueError: no run of the study uses it.
        """
        if key not in self._owners:
            raise ValueError(f"no run of study '{self.study.study}' uses {key}")
        return self._owners[key]

    def check_inputs(self) -> None:
        """Look for the raw data before any job starts; the plan itself is made without it.

        Raises:
            ConfigError: a folder or an annotation file is missing; the message names it.
        """
        for data in {run.data for run in self.runs.values()}:
            if not isinstance(data, ReferData):
                continue
            try:
                root = expand_root(data.root)
            except ValueError as error:
                raise ConfigError(f"{error}, or pass --config data_root=FOLDER") from error
            for name in (*data.image_dirs, *(path for each in data.datasets for path in each.paths)):
                if not (root / name).exists():
                    raise ConfigError(
                        f"{root / name} is not there; data.root must name a folder in REFER layout "
                        "(svp doctor says what is missing and how to get it)"
                    )

    # --- paths -----------------------------------------------------------------------------------

    def pool_dir(self, run: RunConfig) -> Path:
        """The pool that a run's tiny models are pretrained on."""
        return self.data_dir(self.keys(run).pool) / "pool"

    def model_source(self, run: RunConfig, part: str) -> str:
        """Where a run's ``vision``, ``language`` or ``sam`` is loaded from: folder, checkpoint or name."""
        source: str = getattr(run.models, part).source
        if source == "pretrained":
            # The start brings the language model that was trained with its [SEG] head.
            started = part == "language" and is_pretrained(run, "start")
            return str(self.model_dir(self.keys(run).model("start" if started else part)))
        return expand_source(source, part)

    def start_file(self, run: RunConfig) -> Path | None:
        """Weights that a run starts from beside its frozen models, if any."""
        start = run.models.start
        if start == "pretrained":
            return self.model_dir(self.keys(run).model("start")) / "start.safetensors"
        return None if start is None else Path(expand_source(start, "start"))

    def projector_source(self, run: RunConfig) -> str | None:
        """The published weights that a run's projector starts from, if any."""
        source = next(iter(run.models.projector_weights.values()), None)
        return None if source is None else expand_source(source, "projector_weights")

    def choices(self, run: RunConfig) -> list[Path]:
        """The choice that a run waits for: none without a search, and none for a trial of it."""
        return [self.choice_file(run.row)] if run.row in self.trials and not run.held_out_images else []

    def prepared_dir(self, run: RunConfig) -> Path:
        """The prepared tables that a run reads."""
        return self.data_dir(self.keys(run).data) / "prepared"

    def raw_inputs(self, key: str) -> list[Path]:
        """Annotation files that the data called ``key`` are prepared from, as far as they are there.

        A plan is made without them; photographs are told by what is prepared from them.
        """
        data = self.owner(key).data
        if not isinstance(data, ReferData):
            return []
        try:
            root = expand_root(data.root)
        except ValueError:  # a variable that is not set
            return []
        named = [root / path for each in data.datasets for path in each.paths]
        inside = [file for path in named if path.is_dir() for file in sorted(path.glob("*.json"))]
        return list(dict.fromkeys([*(path for path in named if path.is_file()), *inside]))

    def pretrain_inputs(self, key: str) -> list[Path]:
        """Files that pretraining of the model called ``key`` reads."""
        run = self.owner(key)
        files = [self.pool_dir(run) / "summary.json"]
        return files + (self._model_files(run, "language", "sam") if key.startswith("start-") else [])

    def feature_inputs(self, key: str) -> list[Path]:
        """Files that the feature cache called ``key`` is computed from."""
        run = self.owner(key)
        part = "sam" if key.startswith("sam-") else "vision"
        return [self.prepared_dir(run) / "summary.json", *self._model_files(run, part)]

    def superpixel_inputs(self, key: str) -> list[Path]:
        """Files that the superpixels called ``key`` are computed from."""
        run = self.owner(key)
        files = [self.prepared_dir(run) / "summary.json"]
        if run.superpixels is not None and run.superpixels.uses_sam:
            files += [*self._model_files(run, "sam"), self._feature_file(run, "sam")]
        return [*files, *superpixel_weights(run.superpixels)]

    def run_inputs(self, run: RunConfig) -> list[Path]:
        """Files that training and prediction of a run read, its own weights apart."""
        files = [self.prepared_dir(run) / "summary.json", *self.superpixel_files([run])]
        if run.acts_on != "superpixels":
            files += [self._feature_file(run, item) for item in self.keys(run).feature_items]
            files += [*self._model_files(run, "language", "sam", "start"), *projector_weights(run)]
        return files

    def predict_inputs(self, run: RunConfig) -> list[Path]:
        """Files that prediction of a run reads: a control also those of the run it acts on."""
        if run.acts_on == "superpixels":
            return self.run_inputs(run)
        base = self.base_run(run)
        files = [*self.run_inputs(base), *self.run_inputs(run), self.weights(base.id)]
        return list(dict.fromkeys(files))

    def superpixel_files(self, runs: list[RunConfig]) -> list[Path]:
        """Manifests of the superpixels that ``runs`` read."""
        keys = dict.fromkeys(key for run in runs if (key := self.keys(run).superpixels) is not None)
        return [self.superpixel_dir(key) / "manifest.json" for key in keys]

    def _feature_file(self, run: RunConfig, item: str) -> Path:
        return self.feature_dir(self.keys(run).feature(item)) / "index.json"

    def _model_files(self, run: RunConfig, *parts: str) -> list[Path]:
        """What says that the models are there, or are others: the workflow's own mark, or local weights."""
        own = [part for part in pretrained(run) if part in parts]
        files = [self.model_dir(self.keys(run).model(part)) / "done.json" for part in own]
        others = [source_of(run, part) for part in parts if part not in own]
        return files + [path for source in others for path in local_weights(source)]
