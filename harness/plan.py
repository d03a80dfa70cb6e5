"""The plan of a study: every run, every shared artefact, every path. No torch.

The Snakefile asks this module for its file names and hands each job a key; the job reads the
resolved study back from ``results/<study>/config.json``. Shared artefacts (data, pretrained tiny
models, superpixels, frozen features) are named by a hash of exactly what they depend on, so that
studies share them and nothing stale is ever picked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.config import ConfigError, RunConfig, StudyConfig, SuperpixelConfig
from harness.data.options import ReferData, SyntheticData, expand_root
from harness.files import digest, read_json, write_json
from harness.study import load_study, resolve_study, row_names

__all__ = ["Plan"]


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


class Plan:
    """A resolved study.

    Attributes:
        study: the checked study.
        runs: every run by id.
        trials: runs of the learning-rate search by row, by id; empty without a search.
    """

    def __init__(self, study: StudyConfig, runs: list[RunConfig]):
        """From a checked study and its resolved runs (see :meth:`from_raw`, :meth:`load`)."""
        self.study = study
        self.runs = {run.id: run for run in runs}
        self.trials = self._trials()

    @classmethod
    def from_raw(cls, raw: Mapping[str, Any], root: Path | str = ".") -> Plan:
        """From Snakemake's ``config`` mapping.

        Raises:
            harness.config.ConfigError: something in it cannot be run.
        """
        study = load_study(raw)
        return cls(study, resolve_study(study, root))

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

    # --- folders ---------------------------------------------------------------------------------

    @property
    def results(self) -> Path:
        """Root of all results."""
        return Path(self.study.results)

    @property
    def shared(self) -> Path:
        """Artefacts that studies share."""
        return self.results / "shared"

    @cached_property
    def study_dir(self) -> Path:
        """``results/<study>`` (``results/<size>-<study>`` for other model sizes than tiny)."""
        size = next(iter(self.runs.values())).models.size
        name = self.study.study if size == "tiny" else f"{size}-{self.study.study}"
        return self.results / name

    @property
    def config_file(self) -> Path:
        """The resolved study on disk."""
        return self.study_dir / "config.json"

    # --- keys ------------------------------------------------------------------------------------

    def data_spec(self, run: RunConfig) -> dict[str, Any]:
        """What the prepared data depends on."""
        return _plain(run.data)

    def pretrain_spec(self, run: RunConfig, part: str) -> dict[str, Any]:
        """What one tiny model (``vision``, ``language`` or ``sam``) depends on.

        Its pool is that of the study's synthetic data; real data takes the default synthetic pool.
        """
        models = run.models
        assert models.pretrain is not None
        pre = _plain(models.pretrain)
        common = ("seed", "batch", "learning_rate", "torch_threads")
        values = {k: v for k, v in pre.items() if k.startswith(f"{part}_") or k in common}
        if part == "sam":
            values["patch_size"], values["image_size"] = models.vision.patch_size, models.vision.image_size
        if part == "start":
            values |= {name: self.model_key(run, name) for name in ("language", "sam")}
            recipe = _plain(run.training)
            values |= {k: recipe[k] for k in ("expressions_per_image", "bce_weight", "dice_weight")}
        if part == "vision":
            values["kind"] = models.vision.kind
            values["patch_size"], values["image_size"] = models.vision.patch_size, models.vision.image_size
        return {"pool": self.pool_spec(run), "part": part, **values}

    def pool_options(self, run: RunConfig) -> SyntheticData:
        """The synthetic data whose pool the tiny models are pretrained on."""
        data = run.data if isinstance(run.data, SyntheticData) else SyntheticData()
        pool = data.pool_only()
        domain = run.models.pretrain.pool_domain if run.models.pretrain is not None else None
        return pool if domain is None else pool.model_copy(update={"domain": domain})

    def pool_spec(self, run: RunConfig) -> dict[str, Any]:
        """What the pretraining pool depends on."""
        return _plain(self.pool_options(run))

    def model_key(self, run: RunConfig, part: str) -> str:
        """Key of the vision encoder, language model, SAM or pretrained start of a run."""
        if part == "start":
            return f"start-{digest(self.pretrain_spec(run, part))}"
        config = getattr(run.models, part)
        if config.source == "pretrained":
            return f"{part}-{digest(self.pretrain_spec(run, part))}"
        return f"{part}-{digest({'source': config.source, 'kind': getattr(config, 'kind', '')})}"

    def data_key(self, run: RunConfig) -> str:
        """Key of the prepared data."""
        return f"{run.data.kind}-{digest(self.data_spec(run))}"

    def pool_key(self, run: RunConfig) -> str:
        """Key of the data that holds the pretraining pool."""
        return f"pool-{digest(self.pool_spec(run))}"

    def superpixel_spec(self, run: RunConfig) -> dict[str, Any] | None:
        """What the superpixels depend on."""
        config: SuperpixelConfig | None = run.superpixels
        if config is None:
            return None
        return {
            **_plain(config),
            "data": self.data_key(run),
            "grid": list(run.models.vision.grid),
            "sam": self.model_key(run, "sam") if config.uses_sam else None,
        }

    def superpixel_key(self, run: RunConfig) -> str | None:
        """Key of the superpixels, or ``None``."""
        spec = self.superpixel_spec(run)
        return None if spec is None else f"{spec['source']}-{digest(spec)}"

    def feature_spec(self, run: RunConfig, item: str) -> dict[str, Any]:
        """What one cached array depends on; ``item`` is one of :meth:`feature_items`."""
        features = run.models.features
        cached = {"dtype": features.dtype, "compute": features.compute, "gb": features.budget_gb.get(item)}
        common = {"item": item, "data": self.data_key(run), **cached}
        if item == "sam":
            return {**common, "model": self.model_key(run, "sam")}
        vision = run.models.vision
        spec: dict[str, Any] = {
            **common,
            "model": self.model_key(run, "vision"),
            "layer": vision.layer,
            "levels": list(vision.levels) if item == "levels" else None,
            "image_size": vision.image_size,
        }
        if item == "encoder_tokens":
            # What the encoder gives under a hook is the projector's own: nobody else reads it.
            spec["hook"] = {"source": run.source, "config": run.config, "budget": run.budget}
        return spec

    def feature_key(self, run: RunConfig, item: str) -> str:
        """Key of one cached array."""
        return f"{item}-{digest(self.feature_spec(run, item))}"

    def feature_items(self, run: RunConfig) -> tuple[str, ...]:
        """The arrays that a run reads."""
        extras = tuple(n for n in ("levels", "cls_attention", "keys", "encoder_tokens") if n in run.needs)
        return ("patches", "sam", *extras)

    # --- who needs what --------------------------------------------------------------------------

    @property
    def trained(self) -> list[RunConfig]:
        """Runs that are trained (not controls that act at prediction time)."""
        return [r for r in self.runs.values() if r.acts_on == "training"]

    @staticmethod
    def pretrained(run: RunConfig) -> list[str]:
        """Which of a run's models the workflow trains itself."""
        return [p for p in ("vision", "language", "sam", "start") if Plan.is_pretrained(run, p)]

    @property
    def overlay_runs(self) -> list[RunConfig]:
        """The first projectors of the table, drawn side by side on the same photographs."""
        chosen = [r for r in self.trained if r.kind == "projector" and r.seed == self.study.seeds[0]]
        return (chosen or self.trained)[:3]

    def base_run(self, run: RunConfig) -> RunConfig:
        """The trained run whose weights a run predicts with (itself, or the one its control acts on)."""
        if run.acts_on != "run":
            return run
        for other in self.trained:
            if run.of in row_names(other.projector, other.variant) and other.seed == run.seed:
                return other
        raise ValueError(f"{run.id} acts on '{run.of}', which is not trained in this study")

    def owner(self, key: str) -> RunConfig:
        """A run that uses the shared artefact called ``key`` (all of them define it alike).

        Raises:
            ValueError: no run of the study uses it.
        """
        for run in self.runs.values():
            keys = [self.data_key(run), self.pool_key(run), self.superpixel_key(run)]
            keys += [self.model_key(run, p) for p in ("vision", "language", "sam")]
            keys += [self.model_key(run, "start")] if self.is_pretrained(run, "start") else []
            keys += [self.feature_key(run, i) for i in self.feature_items(run)]
            if key in keys:
                return run
        raise ValueError(f"no run of study '{self.study.study}' uses {key}")

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

    def data_dir(self, key: str) -> Path:
        """A prepared data set."""
        return self.shared / "data" / key

    def pool_dir(self, run: RunConfig) -> Path:
        """The pool that a run's tiny models are pretrained on."""
        return self.data_dir(self.pool_key(run)) / "pool"

    def model_dir(self, key: str) -> Path:
        """A pretrained tiny model."""
        return self.shared / "pretrained" / key

    @staticmethod
    def is_pretrained(run: RunConfig, part: str) -> bool:
        """Whether the workflow itself trains a run's ``vision``, ``language``, ``sam`` or ``start``."""
        value = getattr(run.models, part)
        return bool((value if part == "start" else value.source) == "pretrained")

    def model_source(self, run: RunConfig, part: str) -> str:
        """Where a run's ``vision``, ``language`` or ``sam`` is loaded from: folder, checkpoint or name."""
        source: str = getattr(run.models, part).source
        if source == "pretrained":
            # The start brings the language model that was trained with its [SEG] head.
            started = part == "language" and self.is_pretrained(run, "start")
            return str(self.model_dir(self.model_key(run, "start" if started else part)))
        return self._expanded(source, part)

    @staticmethod
    def _expanded(source: str, where: str) -> str:
        try:
            return str(expand_root(source)) if "$" in source else source
        except ValueError as error:
            raise ConfigError(f"models: {where}: {error}") from error

    def start_file(self, run: RunConfig) -> Path | None:
        """Weights that a run starts from beside its frozen models, if any."""
        start = run.models.start
        if start == "pretrained":
            return self.model_dir(self.model_key(run, "start")) / "start.safetensors"
        return None if start is None else Path(self._expanded(start, "start"))

    def superpixel_dir(self, key: str) -> Path:
        """A superpixel store."""
        return self.shared / "superpixels" / key

    def feature_dir(self, key: str) -> Path:
        """A cached feature array."""
        return self.shared / "features" / key

    def run_dir(self, run_id: str) -> Path:
        """A run's weights and log."""
        return self.study_dir / "runs" / run_id

    def weights(self, run_id: str, stage: int = 2) -> Path:
        """A run's trained tensors after ``stage``."""
        return self.run_dir(run_id) / f"stage{stage}.safetensors"

    def prediction_file(self, run_id: str) -> Path:
        """A run's predicted masks, one row an expression."""
        return self.study_dir / "predictions" / f"{run_id}.parquet"

    def score_file(self, run_id: str) -> Path:
        """A run's scores, one row an expression."""
        return self.study_dir / "scores" / f"{run_id}.parquet"

    def choice_file(self, row: str) -> Path:
        """What the learning-rate search of a row found."""
        return self.study_dir / "tuning" / f"{row}.json"

    def choices(self, run: RunConfig) -> list[Path]:
        """The choice that a run waits for: none without a search, and none for a trial of it."""
        return [self.choice_file(run.row)] if run.row in self.trials and not run.held_out_images else []

    @property
    def efficiency_file(self) -> Path:
        """Timings of all projectors, measured in one job."""
        return self.study_dir / "efficiency" / "study.json"

    @property
    def tables_dir(self) -> Path:
        """The study's tables."""
        return self.study_dir / "tables"

    @property
    def figures_dir(self) -> Path:
        """The study's figures."""
        return self.study_dir / "figures"

    @property
    def published_file(self) -> Path:
        """What was mirrored to the tracker."""
        return self.study_dir / "published.json"

    def log_file(self, run_id: str) -> Path:
        """A run's training log, a line a logged step."""
        return self.run_dir(run_id) / "log.jsonl"

    def prepared_dir(self, run: RunConfig) -> Path:
        """The prepared tables that a run reads."""
        return self.data_dir(self.data_key(run)) / "prepared"

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
        return files

    def run_inputs(self, run: RunConfig) -> list[Path]:
        """Files that training and prediction of a run read, its own weights apart."""
        files = [self.prepared_dir(run) / "summary.json", *self.superpixel_files([run])]
        if run.acts_on != "superpixels":
            files += [self._feature_file(run, item) for item in self.feature_items(run)]
            files += self._model_files(run, "language", "sam", "start")
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
        keys = dict.fromkeys(key for run in runs if (key := self.superpixel_key(run)) is not None)
        return [self.superpixel_dir(key) / "manifest.json" for key in keys]

    def _feature_file(self, run: RunConfig, item: str) -> Path:
        return self.feature_dir(self.feature_key(run, item)) / "index.json"

    def _model_files(self, run: RunConfig, *parts: str) -> list[Path]:
        named = [part for part in self.pretrained(run) if part in parts]
        return [self.model_dir(self.model_key(run, part)) / "done.json" for part in named]
