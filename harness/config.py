"""The one schema that YAML, the workflow, the command line and the docs are checked against.

How a study file becomes runs of this schema is :mod:`harness.study`. Nothing here imports torch: the
Snakefile loads this module, and every Slurm job parses the Snakefile again.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, ValidationInfo, field_validator, model_validator

from harness.data.options import ReferData, SyntheticData
from harness.discovery import nearest
from harness.strict import Strict

__all__ = [
    "ConfigError",
    "FeatureConfig",
    "LanguageConfig",
    "ModelsConfig",
    "PretrainConfig",
    "ProtocolConfig",
    "Row",
    "RunConfig",
    "SamConfig",
    "StudyConfig",
    "SuperpixelConfig",
    "TrainingConfig",
    "TuningConfig",
    "VisionConfig",
    "checked_name",
    "study_name",
]

FEATURE_ITEMS = (
    "patches",
    "levels",
    "cls_attention",
    "keys",
    "last_cls_attention",
    "last_keys",
    "encoder_tokens",
    "sam",
)
BLOCKS = ("data", "models", "superpixels", "training", "protocol")


class ConfigError(ValueError):
    """A config that cannot be run; one sentence, naming the key and the mend."""


def checked_name(name: str, *, dots: bool = False) -> str:
    """``name`` as it is, if files and rows can be called so; ``dots``: whether it may hold dots too.

    Raises:
        ValueError: it cannot; the message says what is allowed.
    """
    # It stands in paths, shell lines and Snakemake's patterns, and dots part `projector.variant.budget`.
    if not re.fullmatch(rf"[A-Za-z0-9][A-Za-z0-9_{'.' if dots else ''}+-]*", name):
        signs = f"letters, digits, '_', '+'{', dots' if dots else ''} and '-', a letter or a digit first"
        raise ValueError(f"'{name}' cannot be a name; take {signs}")
    return name


# What `results/` holds beside studies.
_TAKEN = ("efficiency", "mlflow.db", "published", "reference", "shared")


def study_name(name: str) -> str:
    """``name`` as it is, if a study can be called so (see :func:`checked_name`; dots too).

    Raises:
        ValueError: it cannot; the message says what is allowed.
    """
    if name in _TAKEN:
        raise ValueError(f"'{name}' is a folder of results that is no study's; take another name")
    return checked_name(name, dots=True)


Name = Annotated[str, AfterValidator(checked_name)]
StudyName = Annotated[str, AfterValidator(study_name)]


Steps = Annotated[int, Field(ge=0)]
AtLeastOne = Annotated[int, Field(ge=1)]
Rate = Annotated[float, Field(gt=0)]


class VisionConfig(Strict):
    """The frozen vision encoder in front of the projector.

    ``kind`` tells how pixels are normalised: ``dinov2`` (with registers or without), ``clip`` (OpenCLIP's
    weights in transformers' format too), ``siglip`` (SigLIP 2 too); ``auto`` is any other transformers
    vision model with a patch grid, normalised as the ``preprocessor_config.json`` beside it says.
    ``source`` is ``pretrained`` (the tiny one that the workflow trains) or what ``from_pretrained``
    takes. ``layer`` and ``levels`` index hidden states as transformers does (-1 is the last).
    """

    kind: Literal["dinov2", "clip", "siglip", "auto"] = "dinov2"
    source: str = "pretrained"
    image_size: AtLeastOne
    patch_size: AtLeastOne
    layer: int = -1
    levels: tuple[int, ...] = ()

    @property
    def grid(self) -> tuple[int, int]:
        """``(h, w)`` of the patch grid."""
        side = self.image_size // self.patch_size
        return side, side


class LanguageConfig(Strict):
    """The language model, its LoRA and what else learns beside it.

    ``train_embeddings``: the input embeddings and the output head learn too, as in GLaMM's recipe.
    ``attention``: transformers' implementation; FlashAttention takes no mask, and the expressions of an
    image stand behind one copy of its visual tokens by a mask.
    """

    source: str = "pretrained"
    lora_rank: int = 8
    lora_alpha: int = 16
    lora_dropout: float = 0.05
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    train_embeddings: bool = True
    visual_attention: Literal["causal", "bidirectional"] = "causal"
    attention: Literal["sdpa", "eager"] = "sdpa"


class SamConfig(Strict):
    """The SAM whose frozen image encoder feeds the mask decoder and the superpixels.

    ``source`` is ``pretrained`` (the tiny one) or the path of an official checkpoint of ``kind``.
    """

    kind: Literal["tiny", "vit_b", "vit_l", "vit_h"] = "tiny"
    source: str = "pretrained"
    sha256: str | None = None


class FeatureConfig(Strict):
    """How the frozen encoders' outputs are cached.

    ``dtype`` is that of the cache; images that are not cached are rounded to it too. ``compute`` is that
    of the encoders. ``budget_gb``: most that an item (``sam``, ``patches``, …) may take on disk, images of
    ``train`` first; 0 stores none of it, and an item that is not named has no limit.
    """

    dtype: Literal["float16", "bfloat16"] = "float16"
    compute: Literal["float32", "bfloat16"] = "float32"
    budget_gb: dict[str, Annotated[float, Field(ge=0)]] = {}

    @model_validator(mode="after")
    def _known_items(self) -> FeatureConfig:
        for item in self.budget_gb:
            if item not in FEATURE_ITEMS:
                raise ValueError(f"budget_gb: unknown item '{item}'{nearest(item, list(FEATURE_ITEMS))}")
        return self


class PretrainConfig(Strict):
    """Sizes and schedules of the tiny models that the workflow pretrains on the pool of images.

    ``pool_domain``: the look of the pool's scenes, where it is not to be that of the study's own data.
    """

    seed: int = 0
    vision_width: int = 96
    vision_depth: int = 4
    vision_heads: int = 4
    vision_steps: Steps = 600
    language_width: int = 96
    language_depth: int = 4
    language_heads: int = 2
    language_batch: AtLeastOne = 48
    language_steps: Steps = 600
    sam_width: int = 128
    sam_depth: int = 2
    sam_heads: int = 4
    sam_prompt_width: int = 64
    sam_dense_steps: Steps = 400
    sam_steps: Steps = 300
    sam_learning_rate: Rate = 3e-3
    start_steps: Steps = 300
    start_images: AtLeastOne = 12
    pool_domain: Literal["shapes", "blobs"] | None = None
    batch: AtLeastOne = 8
    learning_rate: Rate = 2e-3
    torch_threads: AtLeastOne = 1


class ModelsConfig(Strict):
    """Which vision encoder, language model and SAM; ``size`` names the result folder's prefix.

    ``start``: a file of `svp weights convert` whose ``[SEG]`` head training starts from, and with
    ``start_projector`` (for a row, under ``set``) its projector too, where the layers are the same; or
    ``pretrained``: language model, ``[SEG]`` head and mask decoder come from a tiny model that already
    refers, in scenes told in words.
    ``gpu``: jobs that run the models ask the scheduler for GPUs, and for four times the time that the tiny
    ones need; they fail at once where torch can use none.
    ``memory_gb``: host memory of each of their processes, where it is more than the tiny ones'.
    """

    size: str = "tiny"
    start: str | None = None
    start_projector: bool = False
    gpu: bool = False
    memory_gb: int = Field(0, ge=0)
    vision: VisionConfig
    language: LanguageConfig = LanguageConfig()
    sam: SamConfig = SamConfig()
    features: FeatureConfig = FeatureConfig()
    pretrain: PretrainConfig | None = None

    @model_validator(mode="after")
    def _pretrain_where_named(self) -> ModelsConfig:
        named = [n for n in ("vision", "language", "sam") if getattr(self, n).source == "pretrained"]
        if self.start == "pretrained":
            if not {"language", "sam"} <= set(named):
                raise ValueError(
                    "start 'pretrained' needs language and sam to be 'pretrained' too; with other weights "
                    "set models.start to null"
                )
            if self.start_projector:
                raise ValueError("start 'pretrained' holds no projector; leave start_projector off")
        if named and self.pretrain is None:
            raise ValueError(f"{', '.join(named)}: source 'pretrained' needs a 'pretrain' block")
        if "vision" in named and self.vision.kind == "auto":
            raise ValueError("vision: kind 'auto' has no tiny form; name one, or weights as 'source'")
        return self


class SuperpixelConfig(Strict):
    """A superpixel source by name, with its own options (checked against the source's ``Config``)."""

    source: str
    options: dict[str, Any] = {}
    uses_sam: bool = False


class TrainingConfig(Strict):
    """The recipe, the same for every projector. Steps are optimiser steps.

    The published schedule is GLaMM's: AdamW 3e-4, betas (0.9, 0.95), 100 warm-up steps, linear to 0.
    ``caption_weight`` is not theirs: each ``[SEG]`` also names what it means, and that many
    ``captioned_places`` of each image ask what stands there (:mod:`harness.captions`); in the first
    ``caption_share`` of stage 1 captions are all that is learnt, by the projector alone, as LLaVA's
    projector is aligned first. 0 leaves them out.

    A step's images go through the model ``images_per_forward`` at a time (``None``: all at once), shared
    out among ``processes`` (GPUs); gradients are summed, so that neither changes the step but in rounding.
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


SHARE = "1/[1-9][0-9]*"
Share = Annotated[str, Field(pattern=rf"^{SHARE}$")]
Budget = Annotated[int, Field(ge=1, strict=True)] | Share | None


class Row(Strict):
    """One row of the comparison: a projector (or control) at a budget, in a variant.

    Attributes:
        name: a projector's name, ``module:Class`` or ``path/to/file.py``.
        label: the name in tables where ``name`` is a path or a module (see :func:`checked_name`).
        variant: distinguishes rows of one projector (see :func:`checked_name`).
        budget: visual tokens, or a share of the patches (``1/4``); ``None`` is the projector's default or
            adaptive. Of a list each makes a row.
        full_budgets: further ones, left out at ``effort: quick``.
        config: the projector's own options.
        set: flat deltas of this row alone, as in the study's ``set``.
        of: for a control that acts on a finished run: that row's projector, ``projector.variant``, or
            ``projector.variant.budget`` where there are several.
    """

    name: str
    label: Name | None = None
    variant: Name = "base"
    budget: Budget | tuple[Budget, ...] = None
    full_budgets: tuple[Budget, ...] = ()
    config: dict[str, Any] = {}
    set: dict[str, Any] = {}
    of: str | None = None

    @field_validator("budget", "full_budgets", mode="before")
    @classmethod
    def _is_budget(cls, value: Any, info: ValidationInfo) -> Any:
        if info.field_name == "budget" and isinstance(value, list | tuple) and not value:
            raise ValueError("an empty list makes no row; leave the key out for the projector's own budget")
        for each in value if isinstance(value, list | tuple) else (value,):
            share = isinstance(each, str) and re.fullmatch(SHARE, each)
            count = isinstance(each, int) and not isinstance(each, bool) and each >= 1
            if not (share or count or each is None):
                raise ValueError(
                    f"{each!r} is no budget; give a whole number of tokens, such as 36, or a share of the "
                    "patches, such as 1/4"
                )
        return value

    @model_validator(mode="before")
    @classmethod
    def _from_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value


class StudyConfig(Strict):
    """What is studied; every key of ``config/*.yaml``.

    Attributes:
        study: name, and the folder under ``results/``.
        title: one line above the tables.
        notes: sentences printed under the tables (what the data is, what it cannot show).
        tiny_notes: further ones, which hold for the tiny models only.
        effort: ``quick`` applies ``config/parts/effort/quick.yaml``, takes the default
            learning rate (but see ``tuning.at_quick``), leaves out ``full_seeds`` and ``full_budgets``, and
            the tables say so.
        data, models, superpixels, training, protocol: parts by name.
        rows: what is compared, in the order of the table.
        seeds: repetitions.
        full_seeds: further ones, left out at ``effort: quick``.
        tuning: the learning-rate search; without, rows train at the recipe's rate.
        splits: ``dataset/split`` to evaluate; empty means all but ``train``.
        set: flat deltas, ``block.key: value``.
        bootstrap_resamples: resamples of the image-clustered intervals.
        tracking_uri: MLflow store; empty means ``sqlite:///<results>/mlflow.db``.
        results: root of all results.
        share_runs: whether a run that another study of these results has trained is taken from it.
        reference_row: the projector that speed-ups are relative to.
    """

    study: StudyName = "default"
    title: str = ""
    notes: tuple[str, ...] = ()
    tiny_notes: tuple[str, ...] = ()
    effort: Literal["quick", "full"] = "full"
    data: str
    models: str
    superpixels: str
    training: str
    protocol: str
    rows: tuple[Row, ...]
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    full_seeds: tuple[int, ...] = ()
    tuning: TuningConfig | None = None
    splits: tuple[str, ...] = ()
    set: dict[str, Any] = {}
    bootstrap_resamples: AtLeastOne = 2000
    tracking_uri: str = ""
    results: str = "results"
    share_runs: bool = True
    reference_row: str = "mlp"

    @field_validator("rows", mode="before")
    @classmethod
    def _some_rows(cls, value: Any) -> Any:
        if isinstance(value, list | tuple) and not value:
            raise ValueError("no row is named; list one at least, such as 'mlp'")
        return value

    @field_validator("seeds", "full_seeds", mode="before")
    @classmethod
    def _different_seeds(cls, value: Any) -> Any:
        if isinstance(value, int):
            raise ValueError(f"{value} is no list; write [{value}] for this seed, or [0, 1, 2] for three")
        if isinstance(value, list | tuple) and (twice := [x for x in value if value.count(x) > 1]):
            raise ValueError(f"{twice[0]} stands twice; each repetition needs a seed of its own")
        return value


class RunConfig(Strict):
    """One fully resolved run: everything that can change its numbers, and nothing else."""

    study: str
    projector: str
    source: str
    variant: str
    budget: int | None
    seed: int
    kind: str
    acts_on: Literal["training", "run", "superpixels"]
    of: str | None = None
    needs: tuple[str, ...]
    config: dict[str, Any]
    data: Annotated[SyntheticData | ReferData, Field(discriminator="kind")]
    models: ModelsConfig
    superpixels: SuperpixelConfig | None
    training: TrainingConfig
    protocol: ProtocolConfig
    splits: tuple[str, ...]
    held_out_images: int = 0

    @property
    def row(self) -> str:
        """``projector.variant.budget``: what its repetitions share."""
        return f"{self.projector}.{self.variant}.{self.budget or 'auto'}"

    @property
    def id(self) -> str:
        """``projector.variant.budget.sSEED``; a trial of the learning-rate search also says its rate."""
        trial = f"-lr{self.training.learning_rate:g}" if self.held_out_images else ""
        return f"{self.row}.s{self.seed}{trial}"
