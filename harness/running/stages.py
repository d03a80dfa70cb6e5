"""Each stage of the workflow as one function of the plan and a name; ``svp stage`` calls them.

A stage finds its inputs and outputs through the plan and hands over to the module that does the
work, imported only then: threads are set before torch is.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal

from harness.config import ConfigError, RunConfig
from harness.files import write_json
from harness.planning.jobs import gpus, prediction_processes, threads
from harness.planning.keys import is_pretrained, part_of
from harness.planning.plan import Plan
from harness.planning.triggers import feature_identity
from harness.plugins.discovery import nearest
from harness.running.interpreter import quick_imports

__all__ = ["StageName", "run_stage"]

StageName = Literal[
    "prepare",
    "pool",
    "pretrain",
    "features",
    "superpixels",
    "train",
    "tune",
    "predict",
    "score",
    "efficiency",
    "tables",
    "figures",
    "overlays",
    "publish",
]


def _set_up(name: StageName, run: RunConfig, count: int) -> None:
    """What must stand before torch is imported: threads, and GPUs of its own as its rule asks for them."""
    from harness.devices import claim_cards

    _set_threads(count)
    processes = {"train": run.training.workers, "predict": prediction_processes(run)}
    if name in ("features", "superpixels", "tune", "efficiency", *processes):
        claim_cards(gpus(run, processes.get(name, 1)))


def _on_gpu(run: RunConfig) -> None:
    """A job that asked for a GPU must not go on without one."""
    from harness.devices import require_gpus

    require_gpus(gpus(run))


def _prepare(plan: Plan, key: str) -> None:
    from harness.data.stage import prepare_data

    prepare_data(plan.owner(key).data, plan.data_dir(key))


def _pool(plan: Plan, key: str) -> None:
    from harness.data.synthetic import generate_pool

    generate_pool(plan.keys(plan.owner(key)).pool_options, plan.data_dir(key))


def _pretrain(plan: Plan, key: str) -> None:
    with quick_imports():
        from harness.pretraining.models import pretrain

    run = plan.owner(key)
    upstream = {part: plan.model_dir(plan.keys(run).model(part)) for part in ("language", "sam")}
    pretrain(part_of(key), run, plan.pool_dir(run), plan.model_dir(key), upstream)


def _features(plan: Plan, key: str) -> None:
    with quick_imports():
        from harness.data.tables import load_tables, refuse_shared
        from harness.features.cache import feature_stage

    run, item = plan.owner(key), part_of(key)
    _on_gpu(run)
    if is_pretrained(run, "sam" if item == "sam" else "vision"):
        refuse_shared(load_tables(plan.prepared_dir(run)), load_tables(plan.pool_dir(run)))
    model = plan.model_source(run, "sam" if item == "sam" else "vision")
    identity = feature_identity(plan, key)
    feature_stage(
        item, run, plan.data_dir(plan.keys(run).data), model, plan.feature_dir(key), identity=identity
    )


def _superpixels(plan: Plan, key: str) -> None:
    with quick_imports():
        from harness.superpixels.stage import superpixel_stage

    _on_gpu(plan.owner(key))
    superpixel_stage(plan, plan.owner(key))


def _train(plan: Plan, run: RunConfig, stage: int) -> None:
    from harness.training.diverged import divergence_marked, is_diverged, mark_diverged
    from harness.training.trained import keep_trained, take_trained

    if stage == 2 and run.held_out_images and is_diverged(plan.weights(run.id, 1)):
        mark_diverged(plan, run, 2)
        return
    if take_trained(plan, run, stage):
        if stage == 2:
            _forget_checkpoints(plan, run)
        return
    if run.training.workers > 1:
        from harness.running.processes import launch

        job: Literal["stage1", "stage2"] = "stage1" if stage == 1 else "stage2"
        launch(plan.config_file, run.id, job, run.training.workers, gpu=run.models.gpu)
    else:
        with quick_imports():
            from harness.training.loop import train_stage

        _on_gpu(run)
        with divergence_marked(plan, run, stage):
            train_stage(plan, run, stage)
    if not is_diverged(plan.weights(run.id, stage)):  # no other study takes a failure
        keep_trained(plan, run, stage)
    if stage == 2:
        _forget_checkpoints(plan, run)


def _forget_checkpoints(plan: Plan, run: RunConfig) -> None:
    """Of a finished run, those of its earlier values and code too: nothing goes on with them."""
    for folder in (plan.study_dir / "checkpoints").glob("*"):
        if folder.name.rpartition("-")[0] == run.id:
            shutil.rmtree(folder, ignore_errors=True)


def _tune(plan: Plan, row: str) -> None:
    with quick_imports():
        from harness.training.tuning import tune_stage

    _on_gpu(plan.trial(row))
    tune_stage(plan, row)


def _predict(plan: Plan, run: RunConfig) -> None:
    if (processes := prediction_processes(run)) > 1:
        from harness.running.processes import launch

        launch(plan.config_file, run.id, "predict", processes, gpu=run.models.gpu)
    else:
        with quick_imports():
            from harness.prediction import predict_stage

        _on_gpu(run)
        predict_stage(plan, run)


def _score(plan: Plan, run: RunConfig) -> None:
    import pandas as pd

    from harness.scoring.metrics import score_stage
    from harness.scoring.scored import evaluated, select

    rows = evaluated(pd.read_parquet(plan.prepared_dir(run) / "expressions.parquet"), run.splits)
    score_stage(
        plan.prediction_file(run.id),
        plan.prepared_dir(run),
        plan.score_file(run.id),
        expected=select(rows, run.protocol),
    )


def _efficiency(plan: Plan) -> None:
    with quick_imports():
        from harness.measuring.efficiency import efficiency_stage

    _on_gpu(plan.timed[0])
    efficiency_stage(plan, plan.efficiency_file)


def _tables(plan: Plan) -> None:
    from harness.files import read_json
    from harness.reporting.context import ReportContext
    from harness.reporting.notes import table_notes
    from harness.reporting.tables import tables_stage

    tables_stage(
        [plan.score_file(run) for run in plan.runs],
        [plan.efficiency_file],
        {run.id: plan.prepared_dir(run) for run in plan.runs.values()},
        plan.tables_dir,
        ReportContext.from_study(plan.as_json(), published="results/published", notes=table_notes(plan)),
        {run.row: plan.learning_rate(run) for run in plan.trained},
        prediction_paths=[plan.prediction_file(run) for run in plan.runs],
        searches={row: read_json(plan.choice_file(row)) for row in plan.trials},
    )


def _figures(plan: Plan) -> None:
    from harness.reporting.figures import figures_stage

    figures_stage(
        plan.tables_dir,
        [plan.score_file(run) for run in plan.runs],
        [plan.log_file(run.id) for run in plan.trained],
        {run.id: plan.prepared_dir(run) for run in plan.runs.values()},
        plan.figures_dir,
    )


def _row_name(run: RunConfig) -> str:
    variant = "" if run.variant == "base" else f" ({run.variant})"
    return f"{run.projector}{variant}{f' @{run.budget}' if run.budget else ''}"


def _overlays(plan: Plan) -> None:
    from harness.data.tables import load_tables
    from harness.reporting.overlays import overlays_stage
    from harness.superpixels.store import SuperpixelStore

    runs = plan.overlay_runs
    prepared = plan.prepared_dir(runs[0])
    keys = [key for run in runs if (key := plan.keys(run).superpixels) is not None]
    store = SuperpixelStore(plan.superpixel_dir(keys[0])) if keys else None
    overlays_stage(
        {_row_name(run): (plan.score_file(run.id), plan.prediction_file(run.id)) for run in runs},
        prepared,
        load_tables(prepared).image_root,
        plan.figures_dir,
        superpixels=None if store is None else lambda image_id: store.masks(image_id).masks,
    )


def _publish(plan: Plan) -> None:
    from harness.tracking.mlflow_sink import publish

    write_json(plan.published_file, publish(plan.study_dir, plan.tracking_uri))


_SHARED: dict[str, Callable[[Plan, str], None]] = {
    "prepare": _prepare,
    "pool": _pool,
    "pretrain": _pretrain,
    "features": _features,
    "superpixels": _superpixels,
}
_RUN: dict[str, Callable[[Plan, RunConfig], None]] = {"predict": _predict, "score": _score}
_STUDY: dict[str, Callable[[Plan], None]] = {
    "efficiency": _efficiency,
    "tables": _tables,
    "figures": _figures,
    "overlays": _overlays,
    "publish": _publish,
}


def run_stage(
    name: StageName, config: Path, *, key: str | None = None, run: str | None = None, stage: int | None = None
) -> None:
    """Run one job of the workflow in this process.

    Args:
        name: the stage.
        config: the resolved study, ``results/<study>/config.json``.
        key: the shared artefact, for prepare, pretrain, features and superpixels.
        run: the run's id, for train, predict and score; the row, for tune.
        stage: 1 or 2, for train.

    Raises:
        ConfigError: an argument is missing, or names nothing of the study.
        ValueError: another process is at the same job, too few GPUs are free, or the stage refuses its input.
    """
    plan = Plan.load(config)
    # What studies share has one lock for all of them.
    what = (key,) if key else (plan.study_dir.name, run or "all")
    with _only_one("-".join(str(part) for part in (name, *what, stage or "all"))):
        if name in _SHARED:
            if key is None:
                raise ConfigError(f"stage {name} needs --key")
            _set_up(name, plan.owner(key), threads(plan.owner(key)))
            _SHARED[name](plan, key)
        elif name in _STUDY:
            _set_up(name, plan.trained[0], max(threads(r) for r in plan.runs.values()))
            _STUDY[name](plan)
        else:
            if run is None:
                raise ConfigError(f"stage {name} needs --run")
            known = list(plan.trials if name == "tune" else plan.trainable if name == "train" else plan.runs)
            if run not in known:
                raise ConfigError(f"{config} has no run '{run}'{nearest(run, known)}")
            first = plan.trial(run) if name == "tune" else plan.trainable[run]
            _set_up(name, first, threads(first))
            if name == "tune":
                _tune(plan, run)
            elif name == "train":
                if stage not in (1, 2):
                    raise ConfigError("stage train needs --stage 1 or --stage 2")
                _train(plan, plan.tuned(first), stage)
            else:
                _RUN[name](plan, first)


def _set_threads(count: int) -> None:
    # Weights differ in bits between thread counts: the config decides, never the scheduler.
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ[name] = str(count)


@contextmanager
def _only_one(job: str) -> Iterator[None]:
    """Hold the job's lock: a job left behind by a killed workflow must not write beside its successor.

    Where the file system has no locks (Lustre mounted without ``flock``) the job goes on, and says so.
    """
    path = Path("work") / "locks" / f"{job}.lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            stream.seek(0)
            holder = stream.read().strip() or "unknown"
            raise ValueError(
                f"process {holder} is at {job} already; let it end, or stop it and run again"
            ) from error
        except OSError as error:
            sys.stderr.write(
                f"{path.resolve()} cannot be locked ({error.strerror}): nothing keeps a second process from "
                f"{job}; see to it that none is left behind, or mount the file system with flock\n"
            )
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {os.uname().nodename}")
        stream.flush()
        yield
