"""What the feature cache and the shared visual prefix save, measured on a study's own models and rows.

The models have the study's sizes and next to no training: neither time nor agreement hangs on weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from harness.config import RunConfig
from harness.config.resolve import read_study, row_names
from harness.measuring.clocks import median_seconds
from harness.models.ris import RISModel
from harness.planning.plan import Plan
from harness.projector import ImageFeatures, VisualTokens
from harness.running.stages import run_stage
from harness.training.assembly import RunData, build_model
from harness.training.loop import Sampler, training_step

__all__ = ["bench_cache", "bench_prefix"]

# Enough images for the steps that are timed, and barely a step of pretraining.
_SMALL = {f"data.{name}_images": 2 for name in ("val", "testA", "testB", "test")}
_SMALL |= {"data.train_images": 24, "data.pool_images": 24, "models.pretrain.batch": 4}
_STEPS = {f"models.pretrain.{name}_steps": 4 for name in ("vision", "language", "sam_dense", "sam", "start")}


def _bed(study: Path, folder: Path, changes: dict[str, Any]) -> Plan:
    """The study over a few images, everything that training reads written below ``folder``."""
    raw = read_study(study)
    deltas = {**raw.get("set", {}), **_SMALL, **_STEPS, "superpixels": "slic", **changes}
    plan = Plan.from_raw({**raw, "results": str(folder), "set": deltas})
    plan.save(plan.config_file)
    for stage, key in plan.shared_stages:
        run_stage(stage, plan.config_file, key=key)
    return plan


def _ready(plan: Plan, run: RunConfig) -> tuple[RISModel, RunData, torch.device]:
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    data = RunData(plan, run)
    model = build_model(plan, run, data.vision_width).to(device)
    model.set_stage(2)
    return model, data, device


def bench_cache(study: Path, folder: Path, *, rounds: int = 9) -> dict[str, Any]:
    """A training step of the study's first row, reading cached features and encoding photographs anew.

    Args:
        study: a study of the tiny models.
        folder: where data, models and features are written.
        rounds: timed steps of each.

    Returns:
        ``speedup`` and ``max_abs_diff`` (of the mask logits of one step), and what they come from.
    """
    budgets: dict[str, dict[str, float]] = {"cached": {}, "encoded": {"patches": 0.0, "sam": 0.0}}
    works: dict[str, Callable[[], object]] = {}
    logits: dict[str, Tensor] = {}
    for name, budget in budgets.items():
        plan = _bed(study, folder, {"models.features.budget_gb": budget})
        run = plan.trained[0]
        model, data, device = _ready(plan, run)
        groups = Sampler(data.expressions, run.training, run.seed).rows(2, 0)
        with torch.no_grad():
            logits[name] = _logits(model.eval(), data, groups, device)
        model.train()
        works[name] = partial(_step, model, data, groups, run)
    seconds = median_seconds(works, rounds, device)
    return {
        "speedup": seconds["encoded"] / seconds["cached"],
        "max_abs_diff": (logits["cached"] - logits["encoded"]).abs().max().item(),
        "cached_ms": 1e3 * seconds["cached"],
        "encoded_ms": 1e3 * seconds["encoded"],
        "row": run.id,
        "images_per_step": run.training.images_per_step,
        "cache_dtype": run.models.features.dtype,
        "device": str(device),
        "threads": torch.get_num_threads(),
    }


def _step(model: RISModel, data: RunData, groups: list[pd.DataFrame], run: RunConfig) -> None:
    model.zero_grad(set_to_none=True)
    training_step(model, data, groups, run, 2, 0)


def _logits(model: RISModel, data: RunData, groups: list[pd.DataFrame], device: torch.device) -> Tensor:
    ids = [int(g["image_id"].iloc[0]) for g in groups]
    texts = [g["sentence"].tolist() for g in groups]
    return model(data.features(ids, device), texts, data.sam_embeddings(ids, device))[0]


def bench_prefix(study: Path, folder: Path, *, expressions: int = 7, rounds: int = 15) -> dict[str, Any]:
    """From visual tokens to ``[SEG]`` states: the expressions of an image behind one prefix, or each its own.

    RefCOCO val has 7.2 expressions an image. Both sides take all of them in one batch.

    Args:
        study: a study of the tiny models.
        folder: where data, models and features are written.
        expressions: of one image.
        rounds: timed rounds of each side.

    Returns:
        ``speedup`` and ``max_abs_diff`` of the study's reference row, and ``rows`` with every other row's.
    """
    plan = _bed(study, folder, {})
    found: dict[str, dict[str, Any]] = {}
    for run in plan.trained:
        model, data, device = _ready(plan, run)
        model.eval()
        rows = data.expressions
        image_id = int(rows["image_id"].iloc[0])
        texts = rows["sentence"].drop_duplicates().head(expressions).tolist()
        found[run.id] = _prefix(model, data.features([image_id], device), texts, rounds, device)
    reference = next(r.id for r in plan.trained if plan.study.reference_row in row_names(r))
    return {
        **found[reference],
        "row": reference,
        "expressions": expressions,
        "device": str(device),
        "threads": torch.get_num_threads(),
        "rows": found,
    }


@torch.no_grad()
def _prefix(
    model: RISModel, image: ImageFeatures, texts: list[str], rounds: int, device: torch.device
) -> dict[str, Any]:
    visual = model.visual_tokens(image)
    count = int(visual.lengths[0])
    repeated = VisualTokens.dense(visual.embeddings.expand(len(texts), count, -1))

    def states(tokens: VisualTokens, groups: list[list[str]]) -> Tensor:
        packed = model.pack(tokens, groups)
        return model.hidden(packed)[packed.seg_row, packed.seg_column]

    works: dict[str, Callable[[], Tensor]] = {
        "shared": lambda: states(visual, [texts]),
        "own": lambda: states(repeated, [[text] for text in texts]),
    }
    difference = (works["shared"]() - works["own"]()).abs().max().item()
    seconds = median_seconds(works, rounds, device)
    return {
        "speedup": seconds["own"] / seconds["shared"],
        "max_abs_diff": difference,
        "visual_tokens": count,
        "shared_ms": 1e3 * seconds["shared"],
        "own_ms": 1e3 * seconds["own"],
    }
