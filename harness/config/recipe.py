"""What is the same for every projector of a study: superpixels, training, protocol, learning-rate search."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from harness.config.names import AtLeastOne, Rate, Steps
from harness.strict import Strict

__all__ = ["ProtocolConfig", "SuperpixelConfig", "TrainingConfig", "TuningConfig"]


class SuperpixelConfig(Strict):
    """A superpixel source by name, with its own options (checked against the source's ``Config``)."""

    source: str
    options: dict[str, Any] = {}
    uses_sam: bool = False


class TrainingConfig(Strict):
    """The recipe, the same for every projector. Steps are optimiser steps.

    The published schedule is GLaMM's: AdamW 3e-4, betas (0.9, 0.95), 100 warm-up steps, linear to 0.
    ``caption_weight`` is not theirs: each ``[SEG]`` also names what it means, and that many
    ``captioned_places`` of each image ask what stands there (:mod:`harness.models.captions`); in the first
    ``caption_share`` of stage 1 captions are all that is learnt, by the projector alone, as LLaVA's
    projector is aligned first. 0 leaves them out.

    A step's images go through the model ``images_per_forward`` at a time (``None``: all at once), shared
    out among ``processes`` (GPUs); gradients are summed, so that neither changes the step but in rounding
    (the former where answers are equally long, and without dropout).
    ``strategy``: ``ddp`` holds the frozen weights in every process, ``fsdp`` a share of them in each.
    """

    stage1_steps: Steps
    stage2_steps: Steps
    images_per_step: AtLeastOne
    expressions_per_image: AtLeastOne
    learning_rate: Rate = 3e-4
    warmup_steps: Steps = 100
    betas: tuple[float, float] = (0.9, 0.95)
    weight_decay: float = 0.0
    grad_clip: float = 1.0
    ce_weight: float = 1.0
    bce_weight: float = 2.0
    dice_weight: float = 0.5
    caption_weight: float = Field(0.0, ge=0)
    caption_share: float = Field(0.0, ge=0, le=1)
    captioned_places: int = Field(0, ge=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    images_per_forward: int | None = Field(None, ge=1)
    gradient_checkpointing: bool = False
    processes: int = Field(1, ge=1)
    strategy: Literal["ddp", "fsdp"] = "ddp"
    torch_threads: AtLeastOne = 1
    checkpoint_every: AtLeastOne = 100
    log_every: AtLeastOne = 20

    @property
    def forwards_per_step(self) -> int:
        """Forward passes that a step's images take, over all processes."""
        return self.images_per_step // min(
            self.images_per_forward or self.images_per_step, self.images_per_step
        )

    @property
    def workers(self) -> int:
        """Processes that have a forward pass to make."""
        return min(self.processes, self.forwards_per_step)

    @property
    def caption_steps(self) -> int:
        """Steps at the beginning of stage 1 that learn captions alone."""
        return round(self.caption_share * self.stage1_steps) if self.caption_weight else 0

    @model_validator(mode="after")
    def _shared_out_evenly(self) -> TrainingConfig:
        each = min(self.images_per_forward or self.images_per_step, self.images_per_step)
        if self.images_per_step % each or self.forwards_per_step % self.workers:
            raise ValueError(
                f"images_per_step {self.images_per_step} must be a multiple of images_per_forward {each} "
                f"times processes {self.processes}"
            )
        return self


class ProtocolConfig(Strict):
    """How expressions become prompts and logits become masks: data, hashed into every row.

    ``prompt`` holds ``{image}`` and ``{expression}``; ``answer`` holds ``[SEG]``. Either may be a list, of
    which an expression's words draw one; ``preamble`` stands before each prompt.
    EOS follows the answer, unless
    ``end_of_answer`` is off: a model of width 96 that must say EOS at ``[SEG]`` has no room left there
    for what ``[SEG]`` means.

    ``seg_state``: the mask decoder is prompted by the last hidden state ``at`` ``[SEG]``, or by the one
    ``before`` it, which says ``[SEG]``: GLaMM and LISA shift their mask of ids by one (``GLaMM.py``,
    ``_create_seg_token_mask``; ``LISA.py``, ``model_forward``), and their heads were trained on that state.

    ``name``: ``full`` scores every expression once; ``glamm-3sent`` at most three an image, drawn by
    ``sample_seed``, as GLaMM's evaluation does unseeded. ``decode``: ``forced`` puts the answer into the
    input, as LISA's and GLaMM's evaluations do; ``generate`` lets the model speak, at most
    ``max_new_tokens``: an expression without ``[SEG]`` gets an empty mask.
    """

    name: Literal["full", "glamm-3sent"] = "full"
    sample_seed: int = Field(0, ge=0)
    decode: Literal["forced", "generate"] = "forced"
    max_new_tokens: int = Field(24, ge=1)
    preamble: str = ""
    prompt: str | Annotated[tuple[str, ...], Field(min_length=1)] = "{image} {expression} ."
    answer: str | Annotated[tuple[str, ...], Field(min_length=1)] = "[SEG]"
    lower_case: bool = True
    end_of_answer: bool = True
    seg_state: Literal["at", "before"] = "at"
    threshold: float = 0.0

    @property
    def prompts(self) -> tuple[str, ...]:
        """Every prompt, whole."""
        prompts = (self.prompt,) if isinstance(self.prompt, str) else self.prompt
        return tuple(self.preamble + prompt for prompt in prompts)

    @property
    def answers(self) -> tuple[str, ...]:
        """Every answer."""
        return (self.answer,) if isinstance(self.answer, str) else self.answer

    @property
    def label(self) -> str:
        """What rows and tables call it, such as ``full``, ``glamm-3sent.s0`` or ``full.generate``."""
        sampled = f".s{self.sample_seed}" if self.name == "glamm-3sent" else ""
        return f"{self.name}{sampled}{'.generate' if self.decode == 'generate' else ''}"


class TuningConfig(Strict):
    """The learning-rate search: one grid for every trained row, at equal cost, never on an evaluated split.

    The recipe's rate times each of ``factors`` trains with the first seed for ``steps`` (a share of both
    stages) on the train split but for ``held_out_images`` of its images; the best gIoU on those wins.
    ``at_quick`` searches at ``effort: quick`` too.
    """

    factors: Annotated[tuple[Annotated[float, Field(gt=0)], ...], Field(min_length=2)]
    steps: float = Field(0.25, gt=0, le=1)
    held_out_images: int = Field(100, ge=1)
    at_quick: bool = False
