"""Checks everything that a long run would stumble over, before it starts: ``svp doctor``.

Every check is one function from a plan to findings; none of them changes anything or needs the network.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from harness.config import LanguageConfig, RunConfig
from harness.data.check import Finding, check_data
from harness.data.options import ReferData
from harness.files import sha256_file
from harness.planning.estimates import feature_bytes, memory_estimate, weight_bytes
from harness.planning.keys import PARTS, is_pretrained, source_of
from harness.planning.plan import Plan
from harness.planning.weight_sources import expand_source, is_path
from harness.running.refusals import refusals, unasked_rows

__all__ = ["examine"]

_GB = 1e9


def examine(plan: Plan) -> list[Finding]:
    """Every finding of a study: data, rows, weights, device, memory, attention, disk, tracker."""
    runs = list(plan.runs.values())
    findings: list[Finding] = []
    for data in dict.fromkeys(run.data for run in runs):
        if isinstance(data, ReferData):
            findings += check_data(data)
        else:
            findings.append(Finding("data: synthetic scenes, which the workflow draws itself", "ok"))
    findings += _rows(plan)
    trained = {run.models.model_dump_json(): run for run in runs if run.acts_on != "superpixels"}
    for run in runs:
        findings += [*_superpixels(run), *_projector_weights(run)]
    for run in trained.values():
        findings += [*_weights(run), *_device(run), _attention(run.models.language)]
    findings += [*_disk(plan), *_tracker(plan)]
    return list(dict.fromkeys(findings))


def _superpixels(run: RunConfig) -> Iterator[Finding]:
    """The checkpoint of a superpixel source that has one of its own."""
    source = run.superpixels.options.get("checkpoint") if run.superpixels is not None else None
    if source is not None:
        yield _safe_weights("superpixels", source, "superpixels.options.checkpoint")


def _projector_weights(run: RunConfig) -> Iterator[Finding]:
    """Published weights that a projector starts from."""
    for name, source in run.models.projector_weights.items():
        if source is not None:
            yield _safe_weights(name, source, f"models.projector_weights.{name}")


def _safe_weights(part: str, source: str, key: str) -> Finding:
    """Weights that are read from safetensors alone; ``key`` names them in the config."""
    mend = f"hf download {source} (where there is a network)"
    if is_path(source):
        mend = f"put the weights there, or name where they lie as {key}"
    try:
        return _hub_weights(part, expand_source(source, part), mend, (".safetensors",))
    except ValueError as error:
        return Finding(f"{part}: {error.__cause__}", "missing", mend)


def _rows(plan: Plan) -> Iterator[Finding]:
    refused = refusals(plan)
    for row, reason in refused.items():
        yield Finding(f"row {row}: {reason}", "wrong", "change the row, or leave it out")
    if unasked := unasked_rows(plan):
        yield Finding(
            f"rows: {len(unasked)} of {len(plan.runs)}, such as {unasked[0]}, cannot be asked yet whether "
            "they refuse, as the widths of their models are not known",
            "note",
            "have the weights in place, and ask again",
        )
    elif not refused:
        yield Finding(f"rows: none of {len(plan.runs)} is refused by its projector", "ok")


def _weights(run: RunConfig) -> Iterator[Finding]:
    mends = {
        "sam": "get it from github.com/facebookresearch/segment-anything (Model Checkpoints)",
        "start": "svp weights convert writes it",
    }
    for part in PARTS:
        source = source_of(run, part)
        if source is None:
            continue
        if is_pretrained(run, part):
            yield Finding(f"{part}: a tiny one, which the workflow trains itself", "ok")
            continue
        named = f"hf download {source} (where there is a network)"
        if is_path(source):
            named = f"put the weights there, or name where they lie as models.{part}.source"
        mend = mends.get(part, named)
        try:
            expanded = expand_source(source, part)
        except ValueError as error:
            yield Finding(f"{part}: {error.__cause__}", "missing", mend)
            continue
        if part in mends:
            yield _weight_file(part, Path(expanded), run.models.sam.sha256 if part == "sam" else None, mend)
        else:
            yield _hub_weights(part, expanded, mend)


def _weight_file(part: str, path: Path, sha256: str | None, mend: str) -> Finding:
    if not path.exists():
        return Finding(f"{part}: {path} is not there", "missing", mend)
    if sha256 is not None and sha256_file(path) != sha256:
        return Finding(
            f"{part}: {path} has another sha256 than {sha256[:12]}…",
            "wrong",
            f"if it is meant to, set models.{part}.sha256: null; else delete it and {mend}",
        )
    return Finding(f"{part}: {path}" + (", its sha256 is right" if sha256 else ""), "ok")


def _hub_weights(
    part: str, source: str, mend: str, kinds: tuple[str, ...] = (".safetensors", ".bin")
) -> Finding:
    """A local folder, or a name of the Hugging Face hub whose files are in the cache."""
    folder = Path(source)
    local = folder.is_dir()
    if not local:
        from huggingface_hub import scan_cache_dir
        from huggingface_hub.errors import CacheNotFound

        try:
            found = [repo for repo in scan_cache_dir().repos if repo.repo_id == source]
        except CacheNotFound:
            found = []
        names = [f.file_name for repo in found for r in repo.revisions for f in r.files]
    else:
        names = [path.name for path in folder.iterdir()]
    if "config.json" in names and any(n.endswith(kinds) for n in names):
        return Finding(f"{part}: {source}" + ("" if local else " is in the Hugging Face cache"), "ok")
    what = (
        "holds no config.json with weights" if local else "is neither a folder nor in the Hugging Face cache"
    )
    return Finding(f"{part}: {source} {what}", "missing", mend)


def _device(run: RunConfig) -> Iterator[Finding]:
    if is_pretrained(run, "language"):
        yield Finding("device: models this small need no GPU", "ok")
        return
    need = memory_estimate(run)
    text = (
        f"{need / _GB:.0f} GB for weights and optimiser, activations apart" if need else "an unknown amount"
    )
    import torch

    from harness.devices import torch_build

    if not torch.cuda.is_available():
        yield Finding(
            f"device: no GPU is visible to {torch_build()}, and training takes {text}",
            "missing",
            "run it where there is one: svp run STUDY --profile slurm",
        )
        return
    memory = torch.cuda.get_device_properties(0).total_memory
    name = f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()} of {memory / _GB:.0f} GB"
    if need and need > memory:
        mend = "take models: small, a smaller dtype, or training.strategy: fsdp over several GPUs"
        yield Finding(f"device: {name}, but training takes {text}", "wrong", mend)
    else:
        yield Finding(f"device: {name}; training takes {text}", "ok")
    if run.training.dtype == "bfloat16" and not torch.cuda.is_bf16_supported():
        yield Finding(f"device: {name} has no bfloat16", "wrong", "set training.dtype: float32")


def _attention(config: LanguageConfig) -> Finding:
    if config.attention == "eager":
        what = "attention: eager, which writes out every attention map"
        return Finding(what, "note", "models.language.attention: sdpa is faster, and takes less memory")
    return Finding(f"attention: {config.attention}", "ok")


def _disk(plan: Plan) -> Iterator[Finding]:
    folder = plan.results
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    features, weights = feature_bytes(plan), weight_bytes(plan)
    need = 2e9 + features + weights
    text = f"disk: {free / _GB:.0f} GB free for {plan.results}, up to {need / _GB:.0f} GB wanted"
    if features or weights:
        text += f" ({features / _GB:.0f} for frozen features, {weights / _GB:.0f} for weights)"
    if free >= need:
        yield Finding(text, "ok")
    else:
        mend = "free some, set results: to another disk, or cache less (models.features.budget_gb)"
        yield Finding(text, "note" if free > 2e9 else "missing", mend)


def _tracker(plan: Plan) -> Iterator[Finding]:
    if importlib.util.find_spec("mlflow") is None:
        yield Finding("tracker: mlflow is not installed", "missing", "pip install -e '.[workflow]'")
        return
    uri = plan.tracking_uri
    if uri.startswith(("http://", "https://")):
        import requests

        try:
            requests.get(f"{uri}/health", timeout=5).raise_for_status()
        except requests.exceptions.RequestException as error:
            mend = "start it, or leave tracking_uri empty; the study itself finishes without it"
            yield Finding(f"tracker: {uri} does not answer ({type(error).__name__})", "wrong", mend)
            return
    elif uri.startswith("sqlite:///"):
        folder = Path(uri.removeprefix("sqlite:///")).parent
        while not folder.exists():
            folder = folder.parent
        if not os.access(folder, os.W_OK):
            yield Finding(
                f"tracker: {folder} cannot be written to", "wrong", "set tracking_uri: to another place"
            )
            return
    yield Finding(f"tracker: {uri}", "ok")
