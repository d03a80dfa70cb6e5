"""Timings of every row of a study in one job, stage by stage, beside the analytic bound.

What is timed: each stage of one batch of images with all their expressions, after warm-up, with the
device synchronised at both ends. The rows take turns round by round, so that a machine that drifts
drifts for all of them. What is not timed: reading files, building models, moving features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from harness.assembly import RunData, build_model, load_stage
from harness.config import RunConfig
from harness.encoding import encoder_hook
from harness.files import write_json
from harness.images import read_rgb
from harness.models.ris import RISModel
from harness.models.sam import load_sam, sam_input
from harness.models.vision import load_vision
from harness.plan import Plan
from harness.scoring.scored import evaluated
from harness.seeds import torch_generator
from harness.superpixel_stage import build_source
from harness.superpixels import SuperpixelSource
from harness.timing import count_flops, device_name, peak_rates, timed
from harness.training import training_step

__all__ = ["efficiency_stage"]

_BATCHES = (1, 8)
_ROUNDS = 7
# Stages that happen once an image whatever the projector, and those that hang on it.
_SHARED = ("vision", "sam_encode")
_OWN = ("project", "prefill", "mask")


@dataclass
class _Row:
    run: RunConfig
    data: RunData
    model: RISModel
    groups: dict[int, list[pd.DataFrame]]
    samples: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    flops: dict[tuple[str, int], float] = field(default_factory=dict)
    peak: dict[tuple[str, int], int] = field(default_factory=dict)

    def share_frozen(self, kept: dict[str, Tensor], device: torch.device) -> None:
        """Read the frozen weights from ``kept``, by name, or leave them there for other rows to read."""
        learnt = self.model.trained_state().keys()
        for name, parameter in self.model.named_parameters():
            if name not in learnt:
                if name not in kept:
                    kept[name] = parameter.data.to(device)
                parameter.data = kept[name]

    @property
    def weight_bytes(self) -> int:
        """Of the whole model, what it shares included."""
        return sum(t.nbytes for t in (*self.model.parameters(), *self.model.buffers()))

    @contextmanager
    def on(self, device: torch.device) -> Iterator[None]:
        """The row's own weights on ``device`` for a while: with those of all rows a GPU would overflow."""
        learnt = self.model.trained_state().keys()
        own = [p for name, p in self.model.named_parameters() if name in learnt] + [*self.model.buffers()]
        for tensor in own:
            tensor.data = tensor.data.to(device)
        try:
            yield
        finally:
            self.model.zero_grad(set_to_none=True)
            for tensor in own:
                tensor.data = tensor.data.cpu()


def _own_stages(row: _Row, batch: int) -> dict[str, Callable[[], object]]:
    """The timed calls of a row; each stage's input is computed beforehand."""
    model, data, groups = row.model, row.data, row.groups[batch]
    device = next(model.parameters()).device
    ids = [int(g["image_id"].iloc[0]) for g in groups]
    texts = [g["sentence"].tolist() for g in groups]
    features, sam = data.features(ids, device), data.sam_embeddings(ids, device)
    visual = model.visual_tokens(features)
    packed = model.pack(visual, texts)
    prompts = model.seg_prompts(model.hidden(packed), packed)
    per_expression = sam[packed.image_index]
    return {
        "project": lambda: model.visual_tokens(features),
        "prefill": lambda: model.seg_prompts(model.hidden(model.pack(visual, texts)), packed),
        "mask": lambda: model.mask_logits(prompts, per_expression),
    }


def _train_step(row: _Row) -> Callable[[], object]:
    step_groups = row.groups[-1]

    def work() -> None:
        row.model.zero_grad(set_to_none=True)
        training_step(row.model, row.data, step_groups, row.run, 2, 0)

    return work


def _groups(expressions: pd.DataFrame, run: RunConfig) -> dict[int, list[pd.DataFrame]]:
    """Images with all their expressions at each batch size; ``-1`` is a training step's batch."""
    rows = evaluated(expressions, run.splits)
    first = rows[(rows["dataset"] == rows["dataset"].iloc[0]) & (rows["split"] == rows["split"].iloc[0])]
    groups = [g for _, g in first.groupby("image_id", sort=True)]
    config = run.training
    step = [g.head(config.expressions_per_image) for g in groups[: config.images_per_step]]
    return {**{b: groups[:b] for b in _BATCHES if b <= len(groups)}, -1: step}


def _calls(row: _Row, batch: int) -> dict[str, Callable[[], object]]:
    if batch == -1:
        row.model.set_stage(2)
        row.model.train()
        return {"train_step": _train_step(row)}
    row.model.eval()
    with torch.no_grad():
        return _own_stages(row, batch)


def _warm_up(row: _Row, batch: int, calls: dict[str, Callable[[], object]], device: torch.device) -> None:
    """First calls, which are not timed: peak memory and FLOPs."""
    for stage, work in calls.items():
        work()
        if device.type == "cuda":
            # Inputs of other rows lie there too: what counts is this model, and what the call adds.
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            work()
            added = torch.cuda.max_memory_allocated(device) - before
            row.peak[stage, batch] = added + row.weight_bytes
        if batch != -1:  # torch's counter cannot follow a backward pass through frozen inputs
            row.flops[stage, batch] = count_flops(work)


def _measure_own(rows: list[_Row], device: torch.device) -> None:
    for batch in [*rows[0].groups]:
        calls: list[dict[str, Callable[[], object]]] = []
        for row in rows:
            with row.on(device):
                calls.append(_calls(row, batch))
                with torch.set_grad_enabled(batch == -1):
                    _warm_up(row, batch, calls[-1], device)
        for _ in tqdm(range(_ROUNDS), desc=f"time batch {batch}", mininterval=5):
            for row, call in zip(rows, calls, strict=True):
                with row.on(device), torch.set_grad_enabled(batch == -1):
                    for stage, work in call.items():
                        milliseconds = 1e3 * timed(work, device)[0]
                        row.samples.setdefault((stage, batch), []).append(milliseconds)


@torch.no_grad()
def _measure_encoders(plan: Plan, row: _Row, device: torch.device) -> None:
    """Vision encoder, SAM encoder and superpixels from photographs, for one row."""
    run, data = row.run, row.data
    vision = load_vision(run.models.vision, plan.model_source(run, "vision")).to(device)
    sam = load_sam(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256).to(device)
    hook = encoder_hook(run) if "encoder_tokens" in run.needs else None
    source = build_source(plan, run) if run.superpixels is not None else None
    for batch, groups in row.groups.items():
        if batch == -1:
            continue
        ids = [int(g["image_id"].iloc[0]) for g in groups]
        arrays = [read_rgb(data.tables.image_path(i)) for i in ids]
        pixels = torch.stack([vision.preprocess(a) for a in arrays]).to(device)
        squares = torch.stack([sam_input(a, sam) for a in arrays])
        embeddings = sam.image_encoder(squares)
        works: dict[str, Callable[[], object]] = {
            "vision": partial(vision.encoder_tokens, pixels, hook) if hook else partial(vision, pixels),
            "sam_encode": partial(sam.image_encoder, squares),
        }
        if source is not None:
            works["superpixels"] = partial(_superpixels, source, ids, arrays, embeddings)
        for stage, work in works.items():
            work()
            if stage != "superpixels":
                row.flops[stage, batch] = count_flops(work)
            rounds = _ROUNDS if stage != "superpixels" else 3
            row.samples[stage, batch] = [1e3 * timed(work, device)[0] for _ in range(rounds)]


def _superpixels(
    source: SuperpixelSource, ids: list[int], arrays: list[np.ndarray], embeddings: Tensor
) -> None:
    for image_id, array, embedding in zip(ids, arrays, embeddings, strict=True):
        given = embedding if source.needs_sam else None  # another SAM than the model's encodes for itself
        source.generate(array, image_id=image_id, sam_embedding=given)


def _rows(plan: Plan, runs: list[RunConfig], device: torch.device) -> list[_Row]:
    """The trained rows, one copy of what they leave frozen: a 7B model is there once, not once a row."""
    rows: list[_Row] = []
    frozen: dict[tuple[object, ...], dict[str, Tensor]] = {}
    for run in tqdm(runs, desc="load the rows", mininterval=5):
        data = RunData(plan, run)
        model = build_model(plan, run, data.vision_width)
        load_stage(model, plan.weights(run.id))
        row = _Row(run, data, model, _groups(data.expressions, run))
        sources = (plan.model_source(run, part) for part in ("language", "sam"))
        kept = frozen.setdefault((*sources, run.models.language, run.training.dtype), {})
        row.share_frozen(kept, device)
        rows.append(row)
    return rows


def efficiency_stage(plan: Plan, out_path: Path) -> None:
    """Measure every trained row of the study (its first seed) and write one JSON file.

    Times are relative to the row of ``reference_row``. ``cold`` counts everything from the photograph on,
    superpixels included; ``cached`` starts from stored features and superpixels, as training does and as
    a study of many expressions an image nearly does.
    """
    first_seed = plan.study.seeds[0]
    runs = [r for r in plan.trained if r.seed == first_seed]
    torch.set_num_threads(runs[0].training.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = _rows(plan, runs, device)
    # Whatever is common to rows is measured once and written for each of them.
    measured: dict[str, _Row] = {}
    for row in tqdm(rows, desc="time encoders and superpixels", mininterval=5):
        hooked = "encoder_tokens" in row.run.needs
        encoder = plan.keys(row.run).feature("encoder_tokens" if hooked else "patches")
        key = f"{encoder}/{plan.keys(row.run).superpixels}"
        if key in measured:
            for name in ("samples", "flops"):
                getattr(row, name).update(getattr(measured[key], name))
        else:
            _measure_encoders(plan, row, device)
            measured[key] = _Row(row.run, row.data, row.model, {}, dict(row.samples), dict(row.flops))
    _measure_own(rows, device)
    dtype = getattr(torch, runs[0].training.dtype)
    rates = peak_rates(dtype, device)
    timings, parameters, relative = [], [], []
    for row in rows:
        timings += _timing_rows(row, rates, device)
        learned = sum(p.numel() for p in row.model.projector.parameters())
        parameters.append(
            {
                **_name(row.run),
                "parameters": learned,
                "layer_tokens": _layer_tokens(row, device),
                "step_budgets": _step_budgets(row),
            }
        )
    reference = next((r for r in rows if r.run.projector == plan.study.reference_row), None)
    for row in rows:
        values: dict[str, float | None] = {"speedup_infer": None, "speedup_train": None}
        if reference is not None:
            values["speedup_infer"] = _total(reference, "cold", 1) / _total(row, "cold", 1)
            values["speedup_train"] = _median(reference, "train_step", -1) / _median(row, "train_step", -1)
        relative.append({**_name(row.run), **{k: _round(v) for k, v in values.items()}})
    write_json(out_path, {"rows": timings, "parameters": parameters, "relative": relative})


def _step_budgets(row: _Row) -> int:
    """Token counts that a training step averages over, each a pass through the language model."""
    return len(row.model.projector.training_budgets(0, torch_generator("budget", row.run.seed, 2, 0)))


@torch.no_grad()
def _layer_tokens(row: _Row, device: torch.device) -> float | None:
    """Visual tokens a layer of the language model, where they are not the same in all of them."""
    row.model.eval()
    if row.model.projector.llm_hook() is None:
        return None
    ids = [int(g["image_id"].iloc[0]) for g in row.groups[-1]]
    with row.on(device):
        visual = row.model.visual_tokens(row.data.features(ids, device))
    return float(np.mean([row.model.layer_tokens(count) for count in visual.lengths.tolist()]))


def _name(run: RunConfig) -> dict[str, str]:
    return {
        "projector": run.projector,
        "variant": run.variant,
        "budget": str(run.budget) if run.budget else "auto",
    }


def _median(row: _Row, stage: str, batch: int) -> float:
    return float(np.median(row.samples[stage, batch]))


def _stages(row: _Row, case: str) -> list[str]:
    cold = [*_SHARED, *(["superpixels"] if row.run.superpixels is not None else [])]
    return [*(cold if case == "cold" else []), *_OWN]


def _total(row: _Row, case: str, batch: int) -> float:
    return sum(_median(row, stage, batch) for stage in _stages(row, case))


def _round(value: float | None, digits: int = 4) -> float | None:
    return None if value is None else round(value, digits)


def _timing_rows(row: _Row, rates: tuple[float, float], device: torch.device) -> list[dict[str, Any]]:
    common = {
        **_name(row.run),
        "device": device_name(device),
        "dtype": row.run.training.dtype,
        "attention": row.run.models.language.attention,
    }
    weight_bytes = {
        "prefill": sum(p.numel() * p.element_size() for p in row.model.language.get_decoder().parameters()),
        "project": sum(p.numel() * p.element_size() for p in row.model.projector.parameters()),
    }
    out: list[dict[str, Any]] = []
    for (stage, batch), samples in sorted(row.samples.items()):
        median = float(np.median(samples))
        flops = row.flops.get((stage, batch))
        bound = None
        if flops is not None:
            bound = 1e3 * max(flops / rates[0], weight_bytes.get(stage, 0) / rates[1])
        out.append(
            {
                **common,
                "stage": stage,
                "case": "train" if stage == "train_step" else "cold" if stage not in _OWN else "cached",
                "batch": len(row.groups[batch]),
                "median_ms": _round(median),
                "iqr_ms": _round(float(np.subtract(*np.percentile(samples, [75, 25])))),
                "flops": flops,
                "bound_ms": _round(bound),
                "roofline_fraction": _round(bound / median if bound is not None else None),
                "peak_bytes": row.peak.get((stage, batch)),
            }
        )
    empty = dict.fromkeys(("iqr_ms", "flops", "bound_ms", "roofline_fraction", "peak_bytes"))
    for batch in sorted(b for b in row.groups if b != -1):
        for case in ("cold", "cached"):
            total = {
                "stage": "total",
                "case": case,
                "batch": batch,
                "median_ms": _round(_total(row, case, batch)),
            }
            out.append({**common, **empty, **total})
    return out
