"""The plan of a study: every run, every shared artefact, every path. No torch.

The Snakefile asks this module for its file names and hands each job a key; the job reads the
resolved study back from ``results/<study>/config.json``. Shared artefacts (data, pretrained tiny
models, superpixels, frozen features) are named by a hash of exactly what they depend on, so that
studies share them and nothing stale is ever picked up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from harness.codehash import code_hash
from harness.config import RunConfig, StudyConfig, SuperpixelConfig, load_study, resolve_study
from harness.discovery import get_projector
from harness.files import digest, read_json, write_json

__all__ = ["Plan", "RunPaths"]


def _plain(model: BaseModel) -> dict[str, Any]:
    return model.model_dump(mode="json")


@dataclass(frozen=True)
class RunPaths:
    """Where a run's files lie, and the keys of the shared artefacts that it reads."""

    data: str
    vision: str
    language: str
    sam: str
    features: tuple[str, ...]
    superpixels: str | None


class Plan:
    """A resolved study.

    Attributes:
        study: the checked study.
        runs: every run by id.
    """

    def __init__(self, study: StudyConfig, runs: list[RunConfig]):
        """From a checked study and its resolved runs (see :meth:`from_raw`, :meth:`load`)."""
        self.study = study
        self.runs = {run.id: run for run in runs}

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

        Encoders of another domain are pretrained on that of the config's ``pretrain`` data: the
        prepared data itself where it has a pool, else the default synthetic pool.
        """
        models = run.models
        assert models.pretrain is not None
        pre = _plain(models.pretrain)
        common = ("seed", "batch", "learning_rate", "torch_threads")
        values = {k: v for k, v in pre.items() if k.startswith(f"{part}_") or k in common}
        if part == "sam":
            values["patch_size"], values["image_size"] = models.vision.patch_size, models.vision.image_size
        if part == "vision":
            values["kind"] = models.vision.kind
            values["patch_size"], values["image_size"] = models.vision.patch_size, models.vision.image_size
        return {"pool": self.pool_spec(run), "part": part, **values}

    def pool_spec(self, run: RunConfig) -> dict[str, Any]:
        """The synthetic data whose pool the tiny models are pretrained on."""
        from harness.data.options import SyntheticData

        data = run.data
        if isinstance(data, SyntheticData):
            # The leak is made in the splits; the pool is the same, and so are the tiny models.
            return _plain(data.model_copy(update={"overlap": 0.0}))
        return _plain(SyntheticData())

    def model_key(self, run: RunConfig, part: str) -> str:
        """Key of the vision encoder, language model or SAM of a run."""
        config = getattr(run.models, part)
        if config.source == "pretrained":
            return f"{part}-{digest(self.pretrain_spec(run, part))}"
        return f"{part}-{digest({'source': config.source, 'kind': getattr(config, 'kind', '')})}"

    def data_key(self, run: RunConfig) -> str:
        """Key of the prepared data."""
        return f"{run.data.kind}-{digest(self.data_spec(run))}"

    def pool_key(self, run: RunConfig) -> str:
        """Key of the data that holds the pretraining pool."""
        return f"synthetic-{digest(self.pool_spec(run))}"

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
        """What one cached array depends on: ``patches``, ``levels``, ``cls_attention``, ``keys``, ``sam``."""
        if item == "sam":
            return {"item": item, "data": self.data_key(run), "model": self.model_key(run, "sam")}
        vision = run.models.vision
        return {
            "item": item,
            "data": self.data_key(run),
            "model": self.model_key(run, "vision"),
            "layer": vision.layer,
            "levels": list(vision.levels) if item == "levels" else None,
            "image_size": vision.image_size,
        }

    def feature_key(self, run: RunConfig, item: str) -> str:
        """Key of one cached array."""
        return f"{item}-{digest(self.feature_spec(run, item))}"

    def feature_items(self, run: RunConfig) -> tuple[str, ...]:
        """The arrays that a run reads."""
        extras = tuple(n for n in ("levels", "cls_attention", "keys") if n in run.needs)
        return ("patches", "sam", *extras)

    # --- who needs what --------------------------------------------------------------------------

    @property
    def trained(self) -> list[RunConfig]:
        """Runs that are trained (not controls that act at prediction time)."""
        return [r for r in self.runs.values() if r.acts_on == "training"]

    def base_run(self, run: RunConfig) -> RunConfig:
        """The trained run whose weights a run predicts with (itself, or the one its control acts on)."""
        if run.acts_on != "run":
            return run
        for other in self.trained:
            if other.projector == run.of and other.seed == run.seed:
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
            keys += [self.feature_key(run, i) for i in self.feature_items(run)]
            if key in keys:
                return run
        raise ValueError(f"no run of study '{self.study.study}' uses {key}")

    # --- paths -----------------------------------------------------------------------------------

    def data_dir(self, key: str) -> Path:
        """A prepared data set."""
        return self.shared / "data" / key

    def model_dir(self, key: str) -> Path:
        """A pretrained tiny model."""
        return self.shared / "pretrained" / key

    def superpixel_dir(self, key: str) -> Path:
        """A superpixel store."""
        return self.shared / "superpixels" / key

    def feature_dir(self, key: str) -> Path:
        """A cached feature array."""
        return self.shared / "features" / key

    def run_dir(self, run_id: str) -> Path:
        """A run's weights and log."""
        return self.study_dir / "runs" / run_id

    def work_dir(self, run: RunConfig) -> Path:
        """Checkpoints of a run that is not finished; outside declared outputs, removed on success."""
        return Path("work") / f"{run.id}-{digest(_plain(run))}"

    def run_inputs(self, run: RunConfig) -> list[Path]:
        """Files that training and prediction of a run read."""
        files = [self.data_dir(self.data_key(run)) / "prepared" / "summary.json"]
        if run.superpixels is not None:
            files.append(self.superpixel_dir(str(self.superpixel_key(run))) / "manifest.json")
        if run.acts_on != "superpixels":
            files += [self.feature_dir(self.feature_key(run, i)) / "index.json" for i in self.feature_items(run)]
            files += [
                self.model_dir(self.model_key(run, p)) / "done.json"
                for p in ("language", "sam")
                if getattr(run.models, p).source == "pretrained"
            ]
        return files

    # --- what a rerun hangs on -------------------------------------------------------------------

    def projector_code(self, run: RunConfig) -> str:
        """Hash of the projector's source and what it imports of this project."""
        info = get_projector(run.source)
        return code_hash(info.module if info.module is not None else info.path)

    def train_params(self, run: RunConfig, stage: int) -> str:
        """Everything that can change the weights after ``stage``: values and code.

        The second stage hangs on the first through its file; the protocol's threshold and the
        evaluated splits change no weight.
        """
        values = _plain(run)
        for key in ("splits", "study", "kind", "of", "source"):
            values.pop(key)
        values["protocol"] = {k: values["protocol"][k] for k in ("prompt", "answer", "lower_case")}
        values["training"] = {
            k: v
            for k, v in values["training"].items()
            if k not in ("log_every", "checkpoint_every") and not (stage == 1 and k == "stage2_steps")
        }
        return digest([values, self.projector_code(run), code_hash("harness.training")])

    def predict_params(self, run: RunConfig) -> str:
        """Everything that can change a run's predictions, its weights' files apart."""
        values = _plain(run)
        values.pop("training")
        return digest([values, self.projector_code(run), code_hash("harness.prediction")])
