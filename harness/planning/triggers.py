"""What each job's result hangs on, as one short hash a job: values that matter and code that matters.

Snakemake does not see a change in an imported package; each rule carries one of these hashes in
``params``. A value that cannot change a result is left out, so that changing it reruns nothing.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

from harness.config import RunConfig
from harness.files import digest, file_stamp, sha256_file
from harness.planning.keys import PARTS, part_of, pretrained, source_of
from harness.planning.plan import Plan
from harness.planning.weight_sources import local_weights, projector_weights, superpixel_weights
from harness.plugins.codehash import code_hash
from harness.plugins.discovery import get_projector, get_source

__all__ = [
    "checkpoint_trigger",
    "efficiency_trigger",
    "feature_identity",
    "feature_trigger",
    "pool_trigger",
    "predict_trigger",
    "publish_trigger",
    "prepare_trigger",
    "pretrain_trigger",
    "projector_code",
    "report_trigger",
    "score_trigger",
    "superpixel_identity",
    "superpixel_trigger",
    "train_trigger",
    "tune_trigger",
    "checkpoint_dir",
]

# What a run is called in tables, and where it is evaluated, changes no weight.
_NAMES = ("study", "kind", "variant", "of", "source", "acts_on", "splits")
_ASKED_OF_THE_SCHEDULER = ("gpu", "memory_gb")
# How a trained model is asked and scored; every other value of the protocol is learnt with.
_AFTER_TRAINING = ("name", "sample_seed", "decode", "max_new_tokens", "threshold")
_HOW_OFTEN = ("log_every", "checkpoint_every")


def projector_code(run: RunConfig) -> str:
    """Hash of a run's projector and of what it imports of this project."""
    return _source_code(run.source)


@cache
def _source_code(source: str) -> str:
    # Once a process: finding a projector looks through folders, and a plan asks for hundreds of jobs.
    info = get_projector(source)
    return code_hash(info.module if info.module is not None else info.path)


def prepare_trigger(plan: Plan, key: str) -> str:
    """Data options, reader and generator."""
    return digest([plan.keys(plan.owner(key)).data_spec, code_hash("harness.data.stage")])


def pool_trigger(plan: Plan, key: str) -> str:
    """What the pretraining pool holds, and the generator."""
    return digest([plan.keys(plan.owner(key)).pool_spec, code_hash("harness.data.synthetic")])


def pretrain_trigger(plan: Plan, key: str) -> str:
    """Sizes and schedule of one tiny model, and how it is pretrained."""
    run, part = plan.owner(key), part_of(key)
    upstream = [plan.keys(run).model(p) for p in ("language", "sam")] if part == "start" else []
    return digest(
        [
            plan.keys(run).pretrain_spec(part),
            code_hash("harness.pretraining.models"),
            *(pretrain_trigger(plan, name) for name in upstream),
        ]
    )


def superpixel_trigger(plan: Plan, key: str) -> str:
    """The source with its options, and the source's code."""
    run = plan.owner(key)
    spec = plan.keys(run).superpixel_spec
    assert spec is not None
    module = str(get_source(spec["source"]).module)
    return digest([spec, code_hash("harness.superpixels.stage", module)])


def feature_trigger(plan: Plan, key: str) -> str:
    """The encoder, the layer and the image size, and how features are cached; a hook's own code."""
    run, item = plan.owner(key), part_of(key)
    hook = [projector_code(run)] if item == "encoder_tokens" else []
    return digest([plan.keys(run).feature_spec(item), code_hash("harness.features.cache"), *hook])


def feature_identity(plan: Plan, key: str) -> str:
    """Everything upstream of a cached array: what is left of it from other data or weights is made anew."""
    run = plan.owner(key)
    model = _model_identity(plan, run, "sam" if part_of(key) == "sam" else "vision")
    return digest([feature_trigger(plan, key), *_data_identity(plan, run), model])


def superpixel_identity(plan: Plan, key: str) -> str:
    """Everything upstream of superpixels, with the cached SAM embeddings that masks are decoded from."""
    run = plan.owner(key)
    keys = plan.keys(run)
    upstream = [superpixel_trigger(plan, key), *_data_identity(plan, run)]
    upstream += [str(file_stamp(path)) for path in superpixel_weights(run.superpixels)]
    if run.superpixels is not None and run.superpixels.uses_sam:
        upstream.append(feature_identity(plan, keys.feature("sam")))
    return digest(upstream)


def _data_identity(plan: Plan, run: RunConfig) -> list[str]:
    """How a run's data are prepared, and what they hold: photographs may be replaced where they lie."""
    summary = plan.prepared_dir(run) / "summary.json"
    return [
        prepare_trigger(plan, plan.keys(run).data),
        *([sha256_file(summary)] if summary.is_file() else []),
    ]


def _model_identity(plan: Plan, run: RunConfig, part: str) -> list[Any]:
    """What tells a model's weights from others: how they are pretrained, or files that lie here."""
    if part in pretrained(run):
        keys = plan.keys(run)
        return [pool_trigger(plan, keys.pool), pretrain_trigger(plan, keys.model(part))]
    return [file_stamp(path) for path in local_weights(source_of(run, part))]


def train_trigger(plan: Plan, run: RunConfig, stage: int) -> str:
    """Everything that can change the weights after ``stage``.

    The second stage hangs on the first through its file.
    """
    return plan.keys(run).once(("train", stage), lambda: _train_trigger(run, stage))


def _train_trigger(run: RunConfig, stage: int) -> str:
    values = _without(_dump(run), *_NAMES)
    values["protocol"] = _without(values["protocol"], *_AFTER_TRAINING)
    skip = (*_HOW_OFTEN, "stage2_steps") if stage == 1 else _HOW_OFTEN
    values["training"] = _without(values["training"], *skip)
    return digest([values, projector_code(run), code_hash("harness.training.loop")])


def tune_trigger(plan: Plan, row: str) -> str:
    """The search and how its trials are compared; the trials themselves come as files."""
    trial = plan.trial(row)
    rates = [each.training.learning_rate for each in plan.trials[row].values()]
    threshold = trial.protocol.threshold
    return digest(
        [rates, trial.held_out_images, threshold, projector_code(trial), code_hash("harness.training.tuning")]
    )


def checkpoint_trigger(plan: Plan, run: RunConfig, stage: int = 2) -> str:
    """Everything upstream of a run's weights: those of other data or other code are never gone on with."""
    return plan.keys(run).once(("checkpoint", stage), lambda: _checkpoint_trigger(plan, run, stage))


def _checkpoint_trigger(plan: Plan, run: RunConfig, stage: int) -> str:
    keys = plan.keys(run)
    upstream = [prepare_trigger(plan, keys.data), train_trigger(plan, run, stage)]
    upstream += [pretrain_trigger(plan, keys.model(part)) for part in pretrained(run)]
    sources = [source_of(run, part) for part in PARTS if part not in pretrained(run)]
    upstream += [str(file_stamp(path)) for source in sources for path in local_weights(source)]
    upstream += [feature_trigger(plan, keys.feature(item)) for item in keys.feature_items]
    upstream += [str(file_stamp(path)) for path in projector_weights(run)]
    if (key := keys.superpixels) is not None:
        upstream.append(superpixel_trigger(plan, key))
        upstream += [str(file_stamp(path)) for path in superpixel_weights(run.superpixels)]
    return digest(upstream)


def checkpoint_dir(plan: Plan, run: RunConfig) -> Path:
    """Checkpoints of a run that is not finished; outside declared outputs, removed on success."""
    return plan.study_dir / "checkpoints" / f"{run.id}-{checkpoint_trigger(plan, run)}"


def predict_trigger(plan: Plan, run: RunConfig) -> str:
    """Everything that can change a run's predictions, its weights' files apart."""
    values = _without(_dump(run), "study", "training")
    base = run if run.acts_on == "superpixels" else plan.base_run(run)
    codes = sorted({projector_code(run), projector_code(base)})
    return digest([values, codes, code_hash("harness.prediction")])


def score_trigger(plan: Plan, run: RunConfig) -> str:
    """How a predicted mask becomes an intersection and a union, and the names in the row."""
    return digest(
        [
            run.model_dump(mode="json", include={"projector", "variant", "protocol"}),
            code_hash("harness.scoring.metrics", "harness.scoring.protocols"),
        ]
    )


def efficiency_trigger(plan: Plan) -> str:
    """The rows that are timed, and how."""
    runs = [(r.id, projector_code(r), r.config, _dump(r)["models"]) for r in plan.timed]
    return digest([runs, plan.study.reference_row, code_hash("harness.measuring.efficiency")])


def report_trigger(plan: Plan, *modules: str) -> str:
    """The study's words and rows, and the modules that write a report from its files."""
    words = plan.study.model_dump(
        mode="json",
        include={"study", "title", "notes", "tiny_notes", "effort", "bootstrap_resamples", "reference_row"},
    )
    return digest([words, list(plan.runs), code_hash(*modules)])


def publish_trigger(plan: Plan) -> str:
    """The whole resolved study, as every value is mirrored, how and where to."""
    return digest([plan.as_json(), plan.tracking_uri, code_hash("harness.tracking.mlflow_sink")])


def _dump(run: RunConfig) -> dict[str, Any]:
    values = run.model_dump(mode="json")
    return {**values, "models": _without(values["models"], *_ASKED_OF_THE_SCHEDULER)}


def _without(values: dict[str, Any], *names: str) -> dict[str, Any]:
    return {k: v for k, v in values.items() if k not in names}
