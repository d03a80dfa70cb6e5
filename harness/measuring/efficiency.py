"""Timings of every row of a study in one job, stage by stage, beside the analytic bound.

What is timed: each stage of one batch of images with all their expressions, after warm-up, with the
device synchronised at both ends. Several photographs, spread over the evaluated splits, take their turn,
and for each of them encoders, superpixels and all rows do, so that a machine that drifts drifts for all of
them; a speed-up is the median over photographs. What is not timed: building models, and reading and moving
what a stage starts from; but a training step, on photographs of train, reads its stored features and its
masks, as it does in training.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from harness.config import RunConfig
from harness.config.resolve import row_names
from harness.features.cache import FeatureSource
from harness.files import write_json
from harness.measuring.clocks import (
    TRAIN,
    Batch,
    Calls,
    Member,
    Timed,
    device_name,
    peak_rates,
    time_in_turns,
)
from harness.measuring.encoder_timing import EncoderStage, encoder_stages
from harness.models.ris import RISModel
from harness.planning.plan import Plan
from harness.scoring.scored import evaluated
from harness.seeds import torch_generator
from harness.training.assembly import RunData, build_model, load_stage
from harness.training.loop import training_step

__all__ = ["efficiency_stage"]

_PHOTOGRAPHS = 8
# How often each call of a batch is timed. At batch 1 each photograph is a case, at 8 they are one batch.
_ROUNDS = {1: 2, _PHOTOGRAPHS: 3, TRAIN: 4}
# Stages that happen once an image whatever the projector, and those that hang on it.
_SHARED = ("vision", "sam_encode")
_OWN = ("project", "prefill", "mask")


@dataclass
class _Row(Member):
    """A trained row; its encoders' times join its own."""

    run: RunConfig
    data: RunData
    model: RISModel
    cases: dict[int, list[Batch]]
    found: Timed = field(default_factory=Timed)

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

    def calls(self, batch: int, groups: Batch) -> Calls:
        """The timed calls of a batch; each stage's input is computed beforehand."""
        if batch == TRAIN:
            self.model.set_stage(2)
            self.model.start_learning(checkpointing=self.run.training.gradient_checkpointing)
            return {"train_step": self._train_step(groups)}
        self.model.eval()
        self.model.count_as_merged()
        return self._answer(groups)

    def _answer(self, groups: Batch) -> Calls:
        model, data = self.model, self.data
        device = next(model.parameters()).device
        ids = [int(g["image_id"].iloc[0]) for g in groups]
        said = [g["sentence"].tolist() for g in groups]
        features, texts, owner = model.asked(data.features(ids, device), said)
        sam = data.sam_embeddings(ids, device)
        visual = model.visual_tokens(features)
        packed = model.pack(visual, texts)
        prompts = model.seg_prompts(model.hidden(packed), packed)
        return {
            "project": lambda: model.visual_tokens(features),
            "prefill": lambda: model.seg_prompts(model.hidden(model.pack(visual, texts)), packed),
            # a copy an expression: kept for every row, they would fill a GPU
            "mask": lambda: model.mask_logits(prompts, sam[owner[packed.image_index]]),
        }

    def _train_step(self, groups: Batch) -> Callable[[], object]:
        steps = count()  # of a row that draws its token count, each step costs another time

        def work() -> None:
            self.model.zero_grad(set_to_none=True)
            training_step(self.model, self.data, groups, self.run, 2, next(steps))

        return work


def _spread(rows: pd.DataFrame, most: int) -> Batch:
    """At most so many images, evenly spread, each with all its expressions."""
    places: dict[Any, Any] = dict(rows.groupby(["dataset", "split", "image_id"]).indices)
    names = sorted(places)
    chosen = np.linspace(0, len(names) - 1, min(most, len(names))).round().astype(int)
    return [rows.take(places[names[i]]) for i in dict.fromkeys(chosen.tolist())]


def _cases(data: RunData, run: RunConfig, sources: Collection[FeatureSource]) -> dict[int, list[Batch]]:
    """Batches of images with all their expressions, by batch size; ``TRAIN`` is a training step's.

    Its photographs are stored in all of ``sources``, those of other rows too: all learn from the same ones.
    """
    photographs = _spread(evaluated(data.expressions, run.splits), _PHOTOGRAPHS)
    cases = {1: [[group] for group in photographs]}
    if len(photographs) == _PHOTOGRAPHS:
        cases[_PHOTOGRAPHS] = [photographs]
    train = data.expressions[data.expressions["split"].eq("train")]
    # what a budget left out of the cache would be encoded within the clock
    stored = train["image_id"].map(lambda i: all(i in source.array for source in sources))
    step = _spread(train[stored] if stored.any() else train, run.training.images_per_step)
    return {**cases, TRAIN: [[group.head(run.training.expressions_per_image) for group in step]]}


def _rows(plan: Plan, runs: list[RunConfig], device: torch.device) -> list[_Row]:
    """The trained rows, one copy of what they share: a 7B model is there once, not once a row."""
    rows: list[_Row] = []
    opened = [RunData(plan, run) for run in runs]
    features: dict[str, dict[str, FeatureSource]] = {}
    for run, data in zip(runs, opened, strict=True):
        # of what a budget left out of the cache, the encoder is loaded once
        keys, of_data = plan.keys(run), features.setdefault(plan.keys(run).data, {})
        data.arrays = {item: of_data.setdefault(keys.feature(item), s) for item, s in data.arrays.items()}
    frozen: dict[tuple[object, ...], dict[str, Tensor]] = {}
    for run, data in tqdm(list(zip(runs, opened, strict=True)), desc="load the rows", mininterval=5):
        model = build_model(plan, run, data.vision_width)
        load_stage(model, plan.weights(run.id))
        row = _Row(run, data, model, _cases(data, run, features[plan.keys(run).data].values()))
        sources = (plan.model_source(run, part) for part in ("language", "sam"))
        kept = frozen.setdefault((*sources, run.models.language, run.training.dtype), {})
        row.share_frozen(kept, device)
        rows.append(row)
    return rows


def efficiency_stage(plan: Plan, out_path: Path) -> None:
    """Measure every trained row of the study (its first seed) and write one JSON file.

    Times are relative to the row of ``reference_row``. ``cold`` counts everything from the photograph on,
    superpixels and their place on the patch grid included; ``cached`` starts from stored features and
    superpixels, as training does and as a study of many expressions an image nearly does. ``train_step`` is
    the forward and backward pass of a step of stage 2; neither the optimiser nor superpixels are in it.
    """
    runs = plan.timed
    torch.set_num_threads(runs[0].training.torch_threads)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = _rows(plan, runs, device)
    # Whatever is common to rows is measured once and written for each of them.
    encoders: dict[str, EncoderStage] = {}
    own = [encoder_stages(plan, row.run, row.data, row.cases, device) for row in rows]
    for found in own:
        for key, encoder in found.items():
            encoders.setdefault(key, encoder)
    time_in_turns([*encoders.values(), *rows], _ROUNDS, "encoders and rows", device)
    for row, found in zip(rows, own, strict=True):
        for key in found:
            row.found.samples.update(encoders[key].found.samples)
            row.found.flops.update(encoders[key].found.flops)
    dtype = getattr(torch, runs[0].training.dtype)
    rates = peak_rates(dtype, device)
    timings, parameters = [], []
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
    reference = next((row for row in rows if plan.study.reference_row in row_names(row.run)), None)
    relative = [{**_name(row.run), **_relative(reference, row)} for row in rows]
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
    groups = row.cases[TRAIN][0]
    ids = [int(g["image_id"].iloc[0]) for g in groups]
    with row.on(device):
        image, _, _ = row.model.asked(
            row.data.features(ids, device), [g["sentence"].tolist() for g in groups]
        )
        visual = row.model.visual_tokens(image)
    return float(np.mean([row.model.layer_tokens(count) for count in visual.lengths.tolist()]))


def _name(run: RunConfig) -> dict[str, str]:
    return {
        "projector": run.projector,
        "variant": run.variant,
        "budget": str(run.budget) if run.budget else "auto",
    }


def _relative(reference: _Row | None, row: _Row) -> dict[str, float | None]:
    """How many times faster than the reference: median, lowest and highest, over photographs or rounds."""
    out: dict[str, float | None] = {}
    for name, times in (("speedup_infer", _cold), ("speedup_train", _training)):
        ratios = times(reference) / times(row) if reference is not None else None
        for suffix, measure in (("", np.median), ("_low", np.min), ("_high", np.max)):
            out[name + suffix] = _round(float(measure(ratios)) if ratios is not None else None)
    return out


def _cold(row: _Row) -> np.ndarray:
    return _totals(row, "cold", 1)


def _training(row: _Row) -> np.ndarray:
    return np.asarray(row.found.samples["train_step", TRAIN])


def _stages(row: _Row, case: str) -> list[str]:
    cold = [*_SHARED, *(["superpixels"] if row.run.superpixels is not None else [])]
    return [*(cold if case == "cold" else []), *_OWN]


def _totals(row: _Row, case: str, batch: int) -> np.ndarray:
    """Milliseconds of all stages, of each photograph or round."""
    return np.sum([row.found.samples[stage, batch] for stage in _stages(row, case)], axis=0)


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
    for (stage, batch), samples in sorted(row.found.samples.items()):
        median = float(np.median(samples))
        counted = row.found.flops.get((stage, batch))
        flops = float(np.mean(counted)) if counted else None
        bound = None
        if flops is not None:
            bound = 1e3 * max(flops / rates[0], weight_bytes.get(stage, 0) / rates[1])
        out.append(
            {
                **common,
                "stage": stage,
                "case": "train" if stage == "train_step" else "cold" if stage not in _OWN else "cached",
                "batch": len(row.cases[batch][0]),
                "median_ms": _round(median),
                "iqr_ms": _round(float(np.subtract(*np.percentile(samples, [75, 25])))),
                "flops": flops,
                "bound_ms": _round(bound),
                "roofline_fraction": _round(bound / median if bound is not None else None),
                "peak_bytes": row.found.peak.get((stage, batch)),
            }
        )
    empty = dict.fromkeys(("iqr_ms", "flops", "bound_ms", "roofline_fraction", "peak_bytes"))
    for batch in sorted(b for b in row.cases if b != TRAIN):
        for case in ("cold", "cached"):
            total = {
                "stage": "total",
                "case": case,
                "batch": batch,
                "median_ms": _round(float(np.median(_totals(row, case, batch)))),
            }
            out.append({**common, **empty, **total})
    return out
