"""What rows share on the way from the photograph, as calls to time: encoders and superpixels."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, partial

import numpy as np
import torch
from torch import Tensor

from harness.config import RunConfig
from harness.features.encoding import ATTENTION_ITEMS, encoder_hook
from harness.images import read_rgb
from harness.measuring.clocks import TRAIN, Batch, Calls, Member, Timed
from harness.models.sam import load_sam, sam_input
from harness.models.vision import load_vision
from harness.planning.plan import Plan
from harness.superpixels.source import SuperpixelSource
from harness.superpixels.stage import build_source
from harness.superpixels.store import mask_geometry, on_grid, stood_in
from harness.training.assembly import RunData

__all__ = ["EncoderStage", "encoder_stages"]


@dataclass
class EncoderStage(Member):
    """A stage that rows share, such as the vision encoder, timed once for all of them."""

    stage: str
    cases: dict[int, list[Batch]]
    prepare: Callable[[list[int]], Callable[[], object]]
    found: Timed = field(default_factory=Timed)

    def __post_init__(self) -> None:
        """Superpixels are made with torch and without."""
        self.countable = self.stage != "superpixels"

    def calls(self, batch: int, groups: Batch) -> Calls:
        """The stage alone."""
        return {self.stage: self.prepare([int(g["image_id"].iloc[0]) for g in groups])}


def encoder_stages(
    plan: Plan, run: RunConfig, data: RunData, cases: Mapping[int, list[Batch]], device: torch.device
) -> dict[str, EncoderStage]:
    """Vision encoder, SAM's encoder and superpixels of a run, from photographs on, by what they hang on.

    Args:
        plan: the study.
        run: a trained run.
        data: of the run.
        cases: what is timed; a training step, which reads stored features, is left out.
        device: of the encoders.
    """
    keys = plan.keys(run)
    compute = getattr(torch, run.models.features.compute)
    cast = partial(torch.autocast, device.type, compute, enabled=compute != torch.float32)
    timed_cases = {batch: groups for batch, groups in cases.items() if batch != TRAIN}

    def photographs(ids: list[int]) -> list[np.ndarray]:
        return [read_rgb(data.tables.image_path(i)) for i in ids]

    def autocast(work: Callable[[], object]) -> Callable[[], object]:
        def cast_work() -> object:
            with cast():
                return work()

        return cast_work

    hooked = "encoder_tokens" in run.needs
    attention = bool(set(run.needs) & ATTENTION_ITEMS)

    def vision() -> Callable[[list[int]], Callable[[], object]]:
        model = load_vision(run.models.vision, plan.model_source(run, "vision")).to(device)
        hook = encoder_hook(run) if hooked else None

        def prepare(ids: list[int]) -> Callable[[], object]:
            pixels = torch.stack([model.preprocess(a) for a in photographs(ids)]).to(device)
            if hook is not None:
                return autocast(partial(model.encoder_tokens, pixels, hook))
            return autocast(partial(model, pixels, attention=attention))

        return prepare

    def sam() -> Callable[[list[int]], Callable[[], object]]:
        model = load_sam(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256).to(device)

        def prepare(ids: list[int]) -> Callable[[], object]:
            squares = torch.stack([sam_input(a, model) for a in photographs(ids)])
            return autocast(partial(model.image_encoder, squares))

        return prepare

    def superpixels() -> Callable[[list[int]], Callable[[], object]]:
        source = build_source(plan, run)

        def prepare(ids: list[int]) -> Callable[[], object]:
            # Another SAM than the model's encodes for itself.
            embeddings = data.sam_embeddings(ids, device).unbind() if source.needs_sam else ()
            given = embeddings or (None,) * len(ids)
            return partial(_superpixels, source, ids, photographs(ids), given, run.models.vision.grid)

        return prepare

    encoder = keys.feature("encoder_tokens" if hooked else "patches")
    stages = {
        f"{encoder}{'/attention' if attention else ''}": ("vision", vision),
        keys.feature("sam"): ("sam_encode", sam),
    }
    if keys.superpixels is not None:
        stages[keys.superpixels] = ("superpixels", superpixels)
    return {key: EncoderStage(stage, timed_cases, _once(make)) for key, (stage, make) in stages.items()}


def _once(
    make: Callable[[], Callable[[list[int]], Callable[[], object]]],
) -> Callable[[list[int]], Callable[[], object]]:
    """Load a model when the first batch asks for it: most rows share theirs with a row before."""
    made = cache(make)
    return lambda ids: made()(ids)


def _superpixels(
    source: SuperpixelSource,
    ids: list[int],
    arrays: list[np.ndarray],
    embeddings: Sequence[Tensor | None],
    grid: tuple[int, int],
) -> None:
    """Masks of photographs, and what the projector reads of them."""
    found = source.generate_all(arrays, image_ids=ids, sam_embeddings=embeddings)
    on_grid([mask_geometry(stood_in(made).masks, grid) for made in found])
