"""The contract every visual projector is plugged into: image features in, visual tokens out.

A projector is one file with one :class:`Projector` subclass. It declares what it is and what it
needs as literal class attributes, so that the workflow can read them without importing torch; the
host injects the widths through :class:`Interface`, so that no projector repeats them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import Tensor, nn

__all__ = [
    "EncoderHook",
    "Expressions",
    "ImageFeatures",
    "Interface",
    "LanguageHook",
    "Projector",
    "ProjectorConfig",
    "Superpixels",
    "VisualTokens",
]


@dataclass(frozen=True)
class Superpixels:
    """Binary masks of a batch of images, packed along the first axis and seen on the patch grid.

    Masks may overlap and need not cover the image. Image ``i`` owns ``lengths[i]`` consecutive rows.

    Attributes:
        occupancy: ``[sum K_i, n]`` in 0..1, the share of each patch cell that the mask covers.
        weights: ``[sum K_i, n]``, each row sums to 1: pooling patches with it equals averaging the
            bilinearly up-sampled patch map under the mask at full resolution.
        boxes: ``[sum K_i, 4]`` normalised ``x1, y1, x2, y2`` in 0..1.
        areas: ``[sum K_i]`` share of the image.
        lengths: ``[b]`` int64, the number of superpixels of each image.
        excess: ``[b, n]``, by how much the occupancies of a cell sum to more than the masks cover of it
            together, exactly 0 where none overlap; ``None`` where no masks of an image overlap.
    """

    occupancy: Tensor
    weights: Tensor
    boxes: Tensor
    areas: Tensor
    lengths: Tensor
    excess: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse packed arrays that do not agree with ``lengths``."""
        total = int(self.lengths.sum())
        for name in ("occupancy", "weights", "boxes", "areas"):
            if getattr(self, name).shape[0] != total:
                raise ValueError(
                    f"superpixels: {name} has {getattr(self, name).shape[0]} rows, lengths {total}"
                )

    def to(self, device: torch.device | str, dtype: torch.dtype | None = None) -> Superpixels:
        """The same superpixels on ``device``, floating arrays in ``dtype``."""
        move = {n: getattr(self, n).to(device, dtype) for n in ("occupancy", "weights", "boxes", "areas")}
        excess = None if self.excess is None else self.excess.to(device, dtype)
        return Superpixels(lengths=self.lengths.to(device), excess=excess, **move)

    @property
    def image_index(self) -> Tensor:
        """``[sum K_i]`` int64: the image of the batch that each superpixel belongs to."""
        return torch.repeat_interleave(
            torch.arange(len(self.lengths), device=self.lengths.device), self.lengths
        )

    def take(self, images: Tensor) -> Superpixels:
        """Those of the images numbered so, ``[m]`` int64; an image may come more than once."""
        parts = torch.arange(len(self.areas), device=images.device).split(self.lengths.tolist())
        rows = torch.cat([parts[i] for i in images.tolist()])
        own = {n: getattr(self, n)[rows] for n in ("occupancy", "weights", "boxes", "areas")}
        excess = None if self.excess is None else self.excess[images]
        return Superpixels(lengths=self.lengths[images], excess=excess, **own)


@dataclass(frozen=True)
class Expressions:
    """The expression that each image of a batch is asked for, as the language model would read it.

    Attributes:
        embeddings: ``[sum t_i, H]`` the language model's frozen input embeddings of its tokens, packed.
        lengths: ``[b]`` int64, tokens of each.
    """

    embeddings: Tensor
    lengths: Tensor

    def split(self) -> tuple[Tensor, ...]:
        """One ``[t_i, H]`` view an image."""
        return self.embeddings.split(self.lengths.tolist())

    def mean(self) -> Tensor:
        """``[b, H]`` mean over the tokens of each."""
        return torch.stack([part.mean(0) for part in self.split()])


@dataclass(frozen=True)
class ImageFeatures:
    """What the frozen vision side offers a projector for a batch of ``b`` images.

    Attributes:
        patches: ``[b, n, d]`` patch embeddings in raster order.
        grid: ``(h, w)`` with ``h * w == n``.
        levels: further hidden states, each ``[b, n, d]``, for projectors that need ``levels``.
        cls_attention: ``[b, n]`` attention of the class token to the patches, summed over heads, in the
            block that gives ``patches``.
        keys: ``[b, heads, n, d / heads]`` attention keys of the patches in that block.
        last_cls_attention: ``[b, n]`` attention of the class token to the patches in the encoder's last
            block, as one softmax over all tokens of ``q · k / sqrt(d)``, without a split into heads.
        last_keys: ``[b, heads, n, d / heads]`` attention keys of the patches in the encoder's last block.
        superpixels: ragged superpixels, for projectors that need ``superpixels``.
        encoder_tokens: ``[b, k, d]`` what the encoder gives under the projector's own encoder hook, for
            projectors that need ``encoder_tokens``; they stand on no grid.
        expressions: what each image is asked for, for projectors that need ``expression``. An image of
            several expressions then comes once for each of them.
    """

    patches: Tensor
    grid: tuple[int, int]
    levels: tuple[Tensor, ...] = ()
    cls_attention: Tensor | None = None
    keys: Tensor | None = None
    last_cls_attention: Tensor | None = None
    last_keys: Tensor | None = None
    superpixels: Superpixels | None = None
    encoder_tokens: Tensor | None = None
    expressions: Expressions | None = None

    def __post_init__(self) -> None:
        """Refuse a grid that does not hold the patches."""
        if self.patches.shape[1] != self.grid[0] * self.grid[1]:
            raise ValueError(f"grid {self.grid} does not hold {self.patches.shape[1]} patches")

    def as_map(self, patches: Tensor | None = None) -> Tensor:
        """``[b, d, h, w]``: the patches (or another ``[b, n, d]``) laid out on the grid."""
        patches = self.patches if patches is None else patches
        return patches.transpose(1, 2).unflatten(2, self.grid)

    def with_patches(self, patches: Tensor) -> ImageFeatures:
        """A copy that carries other patch embeddings of the same grid."""
        return replace(self, patches=patches)

    def take(self, images: Tensor) -> ImageFeatures:
        """The images numbered so, ``[m]`` int64, without expressions; an image may come more than once."""
        taken: dict[str, Tensor | None] = {
            name: None if (value := getattr(self, name)) is None else value[images]
            for name in (
                "patches",
                "cls_attention",
                "keys",
                "last_cls_attention",
                "last_keys",
                "encoder_tokens",
            )
        }
        return replace(
            self,
            levels=tuple(level[images] for level in self.levels),
            superpixels=None if self.superpixels is None else self.superpixels.take(images),
            expressions=None,
            **taken,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class VisualTokens:
    """Visual tokens of a batch: packed, ragged by construction.

    Attributes:
        embeddings: ``[sum k_i, H]``, image ``i`` owns ``lengths[i]`` consecutive rows.
        lengths: ``[b]`` int64.
        extra_loss: scalar that training adds to the recipe's loss, weighed by the projector itself
            (reconstruction, commitment, load balance); it is a mean over the batch's images.
    """

    embeddings: Tensor
    lengths: Tensor
    extra_loss: Tensor | None = None

    def __post_init__(self) -> None:
        """Refuse lengths that do not add up to the rows."""
        if int(self.lengths.sum()) != self.embeddings.shape[0]:
            raise ValueError(f"{self.embeddings.shape[0]} embeddings for lengths {self.lengths.tolist()}")

    @classmethod
    def dense(cls, tokens: Tensor) -> VisualTokens:
        """From ``[b, k, H]``, the same count for every image.

        Raises:
            ValueError: ``tokens`` has another number of dimensions.
        """
        if tokens.ndim != 3:
            raise ValueError(f"VisualTokens.dense takes [b, k, H], not {list(tokens.shape)}")
        b, k, _ = tokens.shape
        return cls(tokens.flatten(0, 1), torch.full((b,), k, dtype=torch.long, device=tokens.device))

    @classmethod
    def ragged(cls, tokens: Sequence[Tensor]) -> VisualTokens:
        """From one ``[k_i, H]`` tensor an image."""
        lengths = torch.tensor([len(t) for t in tokens], dtype=torch.long, device=tokens[0].device)
        return cls(torch.cat(list(tokens)), lengths)

    def split(self) -> tuple[Tensor, ...]:
        """One ``[k_i, H]`` view an image."""
        return self.embeddings.split(self.lengths.tolist())


@dataclass(frozen=True)
class Interface:
    """What the host tells a projector when it builds one.

    Attributes:
        vision_width: ``d``, width of the patch embeddings.
        language_width: ``H``, width of the language model.
        grid: ``(h, w)`` of the patch grid it will mostly see.
        budget: visual tokens asked for; ``None`` means the projector's published default, or its
            own count where it adapts to the image.
        level_count: how many further hidden states ``ImageFeatures.levels`` holds.
    """

    vision_width: int
    language_width: int
    grid: tuple[int, int]
    budget: int | None = None
    level_count: int = 0

    @property
    def patch_count(self) -> int:
        """``n``, patches an image."""
        return self.grid[0] * self.grid[1]


class EncoderHook:
    """What a method does inside the frozen vision encoder, between attention and MLP of each block.

    A hook keeps no state between calls: the host carries the sizes from block to block. Leading class
    and register tokens stay with the host; a hook sees the patches alone.
    """

    def attention_bias(self, sizes: Tensor) -> Tensor | None:
        """``[b, k]`` added to the attention logits of each key.

        Args:
            sizes: ``[b, k]`` patches that each token stands for.
        """
        return None

    def between(
        self, tokens: Tensor, keys: Tensor, sizes: Tensor, *, block: int, blocks: int
    ) -> tuple[Tensor, Tensor]:
        """Merge or drop tokens after the attention of a block; the same number for every image.

        Args:
            tokens: ``[b, k, d]``, the residual stream.
            keys: ``[b, heads, k, d / heads]`` of this block's attention.
            sizes: ``[b, k]`` patches that each token stands for.
            block: which block, from 0.
            blocks: how many blocks run up to the selected layer.

        Returns:
            tokens ``[b, k', d]`` and their sizes ``[b, k']``.
        """
        raise NotImplementedError


class LanguageHook:
    """What a method drops inside the language model: visual tokens, after its first ``layer`` layers.

    Every expression drops its own. Positions of the tokens that stay are unchanged.

    Attributes:
        layer: how many layers see all visual tokens; at least 1.
    """

    layer: int

    def kept(self, count: int) -> int:
        """How many of ``count`` visual tokens the later layers see."""
        raise NotImplementedError

    def keep(self, attention: Tensor) -> Tensor:
        """Which of an image's visual tokens stay for one expression: ``kept`` indices, ascending.

        Args:
            attention: ``[n]`` of the question's last token to the visual tokens, in the last layer that
                sees all of them, averaged over heads.
        """
        raise NotImplementedError


class ProjectorConfig(BaseModel):
    """Base of every projector's own options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Projector(nn.Module):
    """Base of every projector.

    Subclasses set the class attributes **as literals** and implement :meth:`forward`.

    Class attributes:
        name: the name used in config, tables and code.
        kind: ``projector``, or ``control`` for trained controls.
        reference: paper or repository the architecture is taken from.
        licence: licence of the reference code (read, never copied).
        departs: in what it is not the published projector, as the end of a sentence that begins with its
            name; stands under every table that holds it.
        starts_from: which published weights it can start from, in words; goes with :meth:`start_from`.
        budgets: token counts of its publication on a 24x24 grid; empty where it adapts.
        needs: what it reads beyond ``patches``: ``levels``, ``cls_attention``, ``keys``,
            ``last_cls_attention``, ``last_keys``, ``superpixels``, ``encoder_tokens``, ``expression``.
        superpixel_source: a fixed superpixel source (a part's name), or ``None`` for the study's own.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "projector"
    reference: ClassVar[str] = ""
    licence: ClassVar[str] = ""
    departs: ClassVar[str] = ""
    starts_from: ClassVar[str] = ""
    budgets: ClassVar[tuple[int, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    superpixel_source: ClassVar[str | None] = None

    class Config(ProjectorConfig):
        """No options."""

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        """Keep the interface and the options; subclasses build their layers after ``super().__init__``."""
        super().__init__()
        self.interface = interface
        self.config = config if config is not None else self.Config()
        self.stage = 2
        self.aligning = False

    @classmethod
    def skip(cls, interface: Interface, config: ProjectorConfig) -> tuple[bool, str]:
        """Whether this combination cannot be run, and why, in words."""
        return False, ""

    @classmethod
    def encoder_hook(
        cls, grid: tuple[int, int], budget: int | None, config: ProjectorConfig
    ) -> EncoderHook | None:
        """What this projector does inside the vision encoder; goes with ``encoder_tokens`` in ``needs``.

        The hooked encoder is as frozen as the plain one, so its output is cached all the same, under a
        key of its own.
        """
        return None

    def llm_hook(self) -> LanguageHook | None:
        """What this projector drops inside the language model; may hang on ``self.training``."""
        return None

    def trainable_in_stage(self, stage: int) -> list[str]:
        """Prefixes of the parameters trained in ``stage`` (1 or 2); all of them unless overridden.

        The trainer also sets ``self.stage`` before each stage, for parts that join later; a loaded
        projector stands at stage 2. While ``self.aligning``, in stage 1, it learns alone from captions and
        whole: ``self.stage`` is 2 then.
        """
        return [""]

    def training_budgets(self, step: int, generator: torch.Generator) -> list[int | None]:
        """Budgets whose losses are averaged in this training step (M3: all scales; MQT: one drawn)."""
        return [None]

    def start_from(self, source: str) -> None:
        """Take over published weights, before training; asked where ``models.projector_weights`` names some.

        Args:
            source: a folder, or a name of the Hugging Face hub.

        Raises:
            OSError: nothing is there that can be loaded.
            ValueError: they do not fit this projector; the message says why.
        """
        raise NotImplementedError

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """Project a batch of images.

        Args:
            image: features of ``b`` images.
            budget: another token count than built for, where the design is elastic.
            generator: source of randomness, for projectors that draw.

        Returns:
            ``VisualTokens`` with embeddings ``[sum k_i, H]``.
        """
        raise NotImplementedError
