"""The frozen models of a run: their weights, their features, and the sizes of the tiny ones."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from harness.config.names import AtLeastOne, Rate, Steps
from harness.plugins.discovery import nearest
from harness.strict import Strict

__all__ = [
    "FEATURE_ITEMS",
    "FeatureConfig",
    "LanguageConfig",
    "ModelsConfig",
    "PretrainConfig",
    "SamConfig",
    "VisionConfig",
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
    ``projector_weights``: published weights that a projector which knows any (``svp projectors``) starts
    from, by its name: a folder, or a name of the Hugging Face hub; ``null`` for none.
    ``gpu``: jobs that run the models ask the scheduler for GPUs, and for four times the time that the tiny
    ones need; they fail at once where torch can use none.
    ``memory_gb``: host memory of each of their processes, where it is more than the tiny ones'.
    """

    size: str = "tiny"
    start: str | None = None
    start_projector: bool = False
    projector_weights: dict[str, str | None] = {}
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
