"""Where the files of a study lie: what it shares with others by key, its own by run."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

from harness.config import RunConfig, StudyConfig
from harness.tracking.uri import default_uri

__all__ = ["Layout"]


class Layout:
    """Paths below the study's results folder.

    Attributes:
        study: the checked study.
        runs: every run by id.
    """

    study: StudyConfig
    runs: dict[str, RunConfig]

    @property
    def results(self) -> Path:
        """Root of all results."""
        return Path(self.study.results)

    @property
    def shared(self) -> Path:
        """Artefacts that studies share."""
        return self.results / "shared"

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

    @cached_property
    def study_dir(self) -> Path:
        """``results/<study>`` (``results/<size>-<study>`` for other model sizes than tiny)."""
        size = next(iter(self.runs.values())).models.size
        name = self.study.study if size == "tiny" else f"{size}-{self.study.study}"
        return self.results / name

    @property
    def tracking_uri(self) -> str:
        """The MLflow store: the study's, or :func:`default_uri`."""
        return self.study.tracking_uri or default_uri(self.results)

    @property
    def minutes_file(self) -> Path:
        """Minutes that each `svp run` of the study took."""
        return self.study_dir / "minutes.json"

    @property
    def started_file(self) -> Path:
        """The code that made the study's results, as of their last start."""
        return self.study_dir / "started.json"

    @property
    def config_file(self) -> Path:
        """The resolved study on disk."""
        return self.study_dir / "config.json"

    def run_dir(self, run_id: str) -> Path:
        """A run's weights and log."""
        return self.study_dir / "runs" / run_id

    def log_file(self, run_id: str) -> Path:
        """A run's training log, a line a logged step."""
        return self.run_dir(run_id) / "log.jsonl"

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
