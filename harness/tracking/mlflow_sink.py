"""MLflow as a sink: a finished study is mirrored into it once, by one writer.

Jobs write files and know no tracker. :func:`publish` reads those files and makes one MLflow run for
each (projector, variant, budget, seed), and one for the study's tables and figures. Each run is tagged
with the sha256 of what it holds: publishing twice adds nothing, changed content replaces its run, and
nobody else's. The SQLite store is migrated before it is used, under a lock: eight jobs that open a fresh
store at once break it.
"""

from __future__ import annotations

import contextlib
import fcntl
import math
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import urlsplit, urlunsplit

import pandas as pd

from harness.files import canonical_json, digest, read_json, sha256_file, write_json
from harness.scoring.metrics import THRESHOLDS, read_scores, summarise
from harness.tracking.uri import default_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

__all__ = ["Curve", "MLflowTracker", "RunRecord", "Tracker", "publish", "read_study"]

_HASH, _KEY, _PUBLISHER = "content_sha256", "run_key", "publisher"
_BATCH = 1000  # MLflow takes no more metrics in one call
Curve = tuple[str, float, int]


class Tracker(Protocol):
    """What a tracker must offer; three methods, so that another store is a page of code."""

    def write_params(self, params: Mapping[str, str]) -> None:
        """Keep the settings of a run."""

    def write_metrics(self, metrics: Sequence[Curve]) -> None:
        """Keep ``(name, value, step)`` points."""

    def finish(self, artifacts: Sequence[Path], content_hash: str) -> None:
        """Keep files, then mark the run complete."""


@dataclass(frozen=True)
class RunRecord:
    """All that one MLflow run will hold."""

    key: str
    params: dict[str, str] = field(default_factory=dict)
    metrics: list[Curve] = field(default_factory=list)
    artifacts: list[Path] = field(default_factory=list)

    @property
    def content_hash(self) -> str:
        """sha256 over settings, points and the bytes of the files."""
        files = [(path.name, sha256_file(path)) for path in self.artifacts]
        return digest([self.key, self.params, self.metrics, files], 64)


class MLflowTracker:
    """One MLflow run through a client; no global state of MLflow is touched."""

    def __init__(self, client: MlflowClient, experiment_id: str, key: str, publisher: str):
        """Start a run called ``key``, of a ``publisher`` who alone replaces it."""
        self._client = client
        tags = {_KEY: key, _PUBLISHER: publisher}
        run = client.create_run(experiment_id, run_name=key, tags=tags)
        self.run_id = run.info.run_id

    def write_params(self, params: Mapping[str, str]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Param

        self._client.log_batch(self.run_id, params=[Param(k, v) for k, v in params.items()])

    def write_metrics(self, metrics: Sequence[Curve]) -> None:
        """See :class:`Tracker`."""
        from mlflow.entities import Metric

        points = [Metric(name, value, 0, step) for name, value, step in metrics]
        for start in range(0, len(points), _BATCH):
            self._client.log_batch(self.run_id, metrics=points[start : start + _BATCH])

    def finish(self, artifacts: Sequence[Path], content_hash: str) -> None:
        """See :class:`Tracker`. The hash comes last: a run that was cut off has none, and is replaced."""
        for path in artifacts:
            self._client.log_artifact(self.run_id, str(path), path.parent.name)
        self._client.set_tag(self.run_id, _HASH, content_hash)
        self._client.set_terminated(self.run_id)


def _metric_name(*parts: str) -> str:
    """MLflow admits no plus sign: ``refcoco+`` becomes ``refcocoplus``."""
    return "/".join(parts).replace("+", "plus")


def _flat(value: Any, prefix: str = "") -> dict[str, str]:
    if isinstance(value, Mapping):
        out: dict[str, str] = {}
        for key, inner in value.items():
            out |= _flat(inner, f"{prefix}{key}.")
        return out
    text = value if isinstance(value, str) else canonical_json(value)
    return {prefix[:-1].replace("+", "plus"): text[:6000]}


def _curves(log: Path) -> list[Curve]:
    from harness.reporting.training_charts import read_log

    out: list[Curve] = []
    for row in read_log(log).to_dict("records"):
        for name, value in row.items():
            number = name not in ("stage", "step") and isinstance(value, (int, float))
            if number and math.isfinite(value):
                out.append((f"train/stage{int(row['stage'])}/{name}", float(value), int(row["step"])))
    return out


def _scores(path: Path) -> list[Curve]:
    table = summarise(read_scores([path]), ["dataset", "split"])
    names = ["giou", "ciou", *(f"p{t * 100:.0f}" for t in THRESHOLDS), "tokens_mean", "n_expressions"]
    return [
        (_metric_name(row["dataset"], row["split"], name), float(row[name]), 0)
        for row in table.to_dict("records")
        for name in names
        if pd.notna(row[name])
    ]


def _table_rows(study: Path) -> dict[tuple[str, str, str], dict[str, float]]:
    """What the main table tells of a row beside its scores, by (projector, variant, budget)."""
    from harness.reporting.context import ROW_KEY, read_csv

    table = read_csv(study / "tables" / "main.csv").drop_duplicates(list(ROW_KEY))
    names = ("speedup_infer", "speedup_train", "parameters", "learning_rate")
    return {
        (row["projector"], row["variant"], row["budget"]): {
            name: float(row[name]) for name in names if pd.notna(row.get(name))
        }
        for row in table.to_dict("records")
    }


def read_study(study_dir: Path | str) -> list[RunRecord]:
    """What a finished study's MLflow runs will hold, read from its files.

    Args:
        study_dir: ``results/<study>`` with ``config.json``, ``scores/``, ``tables/`` and, where there
            are any, ``runs/<run>/log.jsonl`` and ``figures/``.

    Returns:
        A record for each run of the config, then one called ``study`` with tables and figures.

    Raises:
        ValueError: a score file is missing.
    """
    study = Path(study_dir)
    config = read_json(study / "config.json")
    table = _table_rows(study)
    records = []
    for run in config["runs"]:
        budget = str(run["budget"] or "auto")
        key = f"{run['projector']}.{run['variant']}.{budget}.s{run['seed']}"
        scores, log = study / "scores" / f"{key}.parquet", study / "runs" / key / "log.jsonl"
        if not scores.is_file():
            raise ValueError(f"{scores} is missing; run the study to its end first")
        told = dict(table.get((run["projector"], run["variant"], budget), {}))
        params = _flat({**run, "budget": budget})
        if (rate := told.pop("learning_rate", None)) is not None:
            params["training.learning_rate"] = f"{rate:g}"  # a row's search may have left the recipe's
        metrics = _scores(scores) + [(name, value, 0) for name, value in told.items()]
        metrics += _curves(log) if log.is_file() else []
        records.append(RunRecord(key, params, metrics))
    files = [
        p for folder in ("tables", "figures") for p in sorted((study / folder).glob("[!.]*")) if p.is_file()
    ]
    words = {**config["study"], "tracking_uri": _without_secrets(config["study"].get("tracking_uri") or "")}
    records.append(RunRecord("study", _flat({"study": words}), [], files))
    return records


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _migrate(uri: str) -> None:
    from mlflow.db import commands

    upgrade = commands.commands["upgrade"].callback
    if upgrade is None:
        raise ValueError("this MLflow has no 'db upgrade'; install the version that the lock names")
    upgrade(uri)


def _without_secrets(uri: str) -> str:
    parts = urlsplit(uri)
    return urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2])) if parts.netloc else uri


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    found = client.get_experiment_by_name(name)
    if found is None:
        return client.create_experiment(name, artifact_location=artifacts)
    if found.lifecycle_stage == "deleted":
        client.restore_experiment(found.experiment_id)
    return found.experiment_id


def _runs_by_key(client: MlflowClient, experiment_id: str) -> dict[str, list[Any]]:
    out: dict[str, list[Any]] = {}
    token = None
    while True:
        page = client.search_runs([experiment_id], max_results=1000, page_token=token)
        for run in page:
            out.setdefault(run.data.tags.get(_KEY, ""), []).append(run)
        token = page.token
        if not token:
            return out


def _mirror(
    client: MlflowClient, experiment_id: str, records: Sequence[RunRecord], publisher: str
) -> dict[str, Any]:
    there = _runs_by_key(client, experiment_id)
    counts = {"created": 0, "replaced": 0, "unchanged": 0}
    runs = {}
    for record in records:
        content = record.content_hash
        old = there.get(record.key, [])
        same = [run for run in old if run.data.tags.get(_HASH) == content]
        old = [run for run in old if run.data.tags.get(_PUBLISHER) == publisher]
        for run in old if not same else [r for r in old if r is not same[0]]:
            client.delete_run(run.info.run_id)
        if same:
            counts["unchanged"] += 1
            runs[record.key] = {"run_id": same[0].info.run_id, "sha256": content}
            continue
        tracker = MLflowTracker(client, experiment_id, record.key, publisher)
        tracker.write_params(record.params)
        tracker.write_metrics(record.metrics)
        tracker.finish(record.artifacts, content)
        counts["replaced" if old else "created"] += 1
        runs[record.key] = {"run_id": tracker.run_id, "sha256": content}
    return {**counts, "runs": runs}


def _publisher(results: Path) -> str:
    """An id that these results keep: others publish to the same server, and replace their own runs alone."""
    path = results / "publisher.json"
    if not path.is_file():
        write_json(path, {"id": uuid.uuid4().hex})
    return str(read_json(path)["id"])


def publish(study_dir: Path | str, tracking_uri: str | None = None) -> dict[str, Any]:
    """Mirror a finished study into MLflow; what the workflow calls, and keeps as ``published.json``.

    Args:
        study_dir: ``results/<study>``.
        tracking_uri: ``sqlite:///…``, with artifacts in ``mlartifacts`` beside it, or ``http(s)://…``
            default: :func:`harness.tracking.uri.default_uri`.

    Returns:
        ``tracking_uri`` (without credentials), ``experiment``, how many runs were ``created``,
        ``replaced`` and ``unchanged``, and ``runs``: ``run_id`` and ``sha256`` by key.

    Raises:
        ValueError: the study is not finished, or the store is of a kind that MLflow retired.
    """
    study = Path(study_dir).resolve()
    uri = tracking_uri or default_uri(study.parent)
    scheme = urlsplit(uri).scheme
    if scheme not in ("sqlite", "http", "https"):
        raise ValueError(f"tracking_uri '{_without_secrets(uri)}' must be sqlite:///… or http(s)://…")
    records = read_study(study)
    from mlflow import MlflowClient

    with contextlib.ExitStack() as stack:
        artifacts = None
        if scheme == "sqlite":
            database = Path(uri.removeprefix("sqlite:///")).resolve()
            uri = f"sqlite:///{database}"
            artifacts = (database.parent / "mlartifacts" / study.name).as_uri()
            stack.enter_context(_locked(database.with_name(f".{database.name}.lock")))
            _migrate(uri)
        client = MlflowClient(tracking_uri=uri)
        experiment_id = _experiment(client, study.name, artifacts)
        done = _mirror(client, experiment_id, records, _publisher(study.parent))
    return {"tracking_uri": _without_secrets(uri), "experiment": study.name, **done}
