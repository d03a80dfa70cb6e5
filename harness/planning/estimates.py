"""What a study will take of a GPU and of a disk, told from its plan and from its models' names alone."""

from __future__ import annotations

import re

from harness.config import RunConfig
from harness.data.options import ReferData
from harness.planning.keys import is_pretrained
from harness.planning.plan import Plan

__all__ = ["feature_bytes", "memory_estimate", "parameters_of_name", "weight_bytes"]

# Parameters of encoders by the size in their name: SAM's image encoders, DINOv2 and CLIP vision models.
_SAM_SIZES = {"tiny": 1e6, "vit_b": 94e6, "vit_l": 312e6, "vit_h": 641e6}
_VISION_SIZES = {"small": 22e6, "base": 87e6, "large": 304e6, "so400m": 428e6, "giant": 1.14e9}
# What learns, as a share of the language model: embeddings, head, mask decoder, LoRA, a projector.
# The embeddings of a small one are nearly as large as those of a 7B model.
_LEARNS, _LEARNS_IF_SMALL, _SMALL = 0.05, 0.3, 2e9
# Photographs of RefCOCO, RefCOCO+ and RefCOCOg together, which they share.
_IMAGES = 25_000
# Channels of a patch, as in the large encoders; values of SAM's embedding of an image.
_WIDTH = 1024
_SAM_VALUES = 64 * 64 * 256


def parameters_of_name(source: str, sizes: dict[str, float]) -> float | None:
    """Parameters that a model's name tells (``7b``, ``0.5B``, ``large``), or ``None``."""
    if found := re.search(r"(?<![\w.])(\d+(?:\.\d+)?)b(?![a-z0-9])", source.lower()):
        return float(found[1]) * 1e9
    return next((count for word, count in sizes.items() if word in source.lower()), None)


def memory_estimate(run: RunConfig) -> float | None:
    """Least bytes that training takes on a GPU, activations apart; ``None`` where a name tells no size.

    Frozen weights are counted in the training's dtype; what learns in float32 with gradient and Adam's two
    moments.
    """
    models, config = run.models, run.training
    language = parameters_of_name(models.language.source, {})
    vision = parameters_of_name(models.vision.source, _VISION_SIZES)
    if language is None or vision is None:
        return None
    width = 2 if config.dtype == "bfloat16" else 4
    return width * (language + vision + _SAM_SIZES[models.sam.kind]) + 16 * _learnt(language)


def _learnt(language: float) -> float:
    """Parameters that learn beside a language model of so many."""
    return language * (_LEARNS_IF_SMALL if language < _SMALL else _LEARNS)


def feature_bytes(plan: Plan) -> float:
    """Bytes of all frozen features of COCO's photographs, each array once, within ``features.budget_gb``."""
    arrays: dict[str, float] = {}
    for run in plan.trained:
        if not isinstance(run.data, ReferData) or is_pretrained(run, "vision"):
            continue
        for item in plan.keys(run).feature_items:
            size = _IMAGES * _row_bytes(run, item)
            most = run.models.features.budget_gb.get(item)
            arrays[plan.keys(run).feature(item)] = size if most is None else min(size, most * 1e9)
    return sum(arrays.values())


def weight_bytes(plan: Plan) -> float:
    """Bytes of what all runs learn, trials of a search included: a float32 file after each stage."""
    sizes = [
        parameters_of_name(run.models.language.source, {}) or 0.0
        for run in plan.trainable.values()
        if run.acts_on == "training"
    ]
    return 2 * 4 * sum(map(_learnt, sizes))


def _row_bytes(run: RunConfig, item: str) -> int:
    """One image of a cached array, two bytes a value."""
    height, width = run.models.vision.grid
    patches = height * width
    values = {
        "sam": _SAM_VALUES,
        "levels": len(run.models.vision.levels) * patches * _WIDTH,
        "cls_attention": patches,
        "last_cls_attention": patches,
        "encoder_tokens": (run.budget or patches) * _WIDTH,
    }
    return 2 * values.get(item, patches * _WIDTH)
