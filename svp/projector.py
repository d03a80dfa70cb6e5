"""The Semantic Visual Projector (SVP, arXiv 2509.13676): one visual token for each semantic superpixel."""

from __future__ import annotations

from typing import Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from harness.projector import ImageFeatures, Interface, Projector, ProjectorConfig, Superpixels, VisualTokens
from svp.pooling import order_key, pool, smallest_owner, sort_by, with_background
from svp.ssa import SuperpixelAttention, own_embedding
from svp.sspe import BoxEncoder, CentroidEncoder, CrossAttentionEncoder, MaskEncoder, ShapeEncoder, ShapeHead

__all__ = ["SVP", "WITHOUT_SSPE"]


# Readings of the SSA whose queries and keys carry no SSPE.
WITHOUT_SSPE = ("none", "plain")


def _fixed_budget(budget: int) -> str:
    return f"a budget of {budget} tokens cannot be kept: the superpixels decide; set their source's options"


class SVP(Projector):
    """Pool patches under each mask, refine by SSA, project by an MLP, add SSPE.

    ``t_i = MLP(SSA(z_i, X)) + P(p_i)``. The count of tokens is the count of superpixels, so it adapts to
    the image; ``budget`` is set by the superpixel source, not here.
    """

    name = "svp"
    reference = "arXiv 2509.13676 (reimplemented from its description)"
    licence = "none published (reimplemented from the paper's description)"
    departs = (
        "is built from the abstract and from summaries of arXiv 2509.13676; what they leave open is an "
        "option of svp/projector.py, set to the nearest reading"
    )
    needs = ("superpixels",)

    class Config(ProjectorConfig):
        """Choices of the method; the defaults are the paper's as far as its abstract and summaries tell.

        Attributes:
            pooling: ``up`` (mean under the mask of the up-sampled patch map) or ``down`` (on the grid).
            sspe: position encoder: the paper's ``cross_attention``, or an ablation.
            sspe_reading: of the paper's encoder, see :class:`svp.sspe.CrossAttentionEncoder`.
            sspe_blocks: 3 in the paper.
            sspe_queries: 4 in the paper.
            sspe_width: width inside the encoder; ``None`` takes the vision width.
            sspe_mlp_ratio: widening of its MLPs; not known to us, 2 keeps it light.
            sspe_from_stage: first training stage with SSPE; before, it is off everywhere. 2 in the paper.
            ssa: ``none`` (pooling only), ``plain`` (no SSPE), ``query_sspe`` (SSPE on queries only),
                ``patch_sspe`` (and on keys, each patch's own), ``superpixel_sspe`` (and on keys, that of
                the smallest superpixel covering the patch: the paper's). While SSPE is off or ``none``,
                all but ``none`` act as ``plain``.
            ssa_heads: heads of the SSA; not known to us.
            order: of the tokens in an image; not known to us.
            order_seed: of ``order: random``.
            background: whether what no superpixel covers forms one more token with a learned mark; its
                SSPE then also stands on the keys there, which is zero otherwise.
        """

        pooling: Literal["up", "down"] = "up"
        sspe: Literal["none", "cross_attention", "bbox_mlp", "mask_mlp", "sinusoidal"] = "cross_attention"
        sspe_reading: Literal["grid", "occupancy"] = "grid"
        sspe_blocks: int = Field(3, ge=1)
        sspe_queries: int = Field(4, ge=1)
        sspe_width: int | None = Field(None, ge=4)
        sspe_mlp_ratio: int = Field(2, ge=1)
        sspe_from_stage: Literal[1, 2] = 2
        ssa: Literal["none", "plain", "query_sspe", "patch_sspe", "superpixel_sspe"] = "superpixel_sspe"
        ssa_heads: int = Field(8, ge=1)
        order: Literal["area", "raster", "random", "stored"] = "area"
        order_seed: int = 0
        background: bool = False

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        """Build the parts that the config asks for."""
        super().__init__(interface, config)
        if interface.budget is not None:
            raise ValueError(_fixed_budget(interface.budget))
        options: SVP.Config = self.config  # type: ignore[assignment]
        d, width = interface.vision_width, interface.language_width
        self.ssa = SuperpixelAttention(d, options.ssa_heads) if options.ssa != "none" else None
        self.mlp = nn.Sequential(nn.Linear(d, width), nn.GELU(), nn.Linear(width, width))
        self.background = nn.Parameter(torch.zeros(d)) if options.background else None
        encoder = self._encoder(options)
        read = d if options.ssa not in WITHOUT_SSPE else None
        self.sspe = ShapeHead(encoder, width, read) if encoder is not None else None

    def _encoder(self, options: SVP.Config) -> ShapeEncoder | None:
        width = options.sspe_width or self.interface.vision_width
        if options.sspe == "cross_attention":
            return CrossAttentionEncoder(
                width,
                blocks=options.sspe_blocks,
                queries=options.sspe_queries,
                mlp_ratio=options.sspe_mlp_ratio,
                reading=options.sspe_reading,
            )
        if options.sspe == "bbox_mlp":
            return BoxEncoder(width)
        if options.sspe == "mask_mlp":
            return MaskEncoder(width, self.interface.grid)
        return CentroidEncoder(width) if options.sspe == "sinusoidal" else None

    @classmethod
    def skip(cls, interface: Interface, config: ProjectorConfig) -> tuple[bool, str]:
        """Heads that do not divide the width, or a fixed budget, cannot be built."""
        if interface.budget is not None:
            return True, _fixed_budget(interface.budget)
        options: SVP.Config = config  # type: ignore[assignment]
        if options.ssa != "none" and interface.vision_width % options.ssa_heads:
            return (
                True,
                f"ssa_heads {options.ssa_heads} does not divide the vision width {interface.vision_width}",
            )
        return False, ""

    def trainable_in_stage(self, stage: int) -> list[str]:
        """All parameters, without SSPE before ``sspe_from_stage``."""
        parts = [name for name, _ in self.named_children() if name != "sspe"]
        parts += ["background"] if self.background is not None else []
        return parts + (["sspe"] if self.sspe is not None and self._sspe_joined(stage) else [])

    def _sspe_joined(self, stage: int) -> bool:
        return stage >= self.config.sspe_from_stage  # type: ignore[attr-defined]

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token for each superpixel (and for the background), in the configured order.

        Args:
            image: patches ``[b, n, d]`` and ragged superpixels.
            budget: not elastic: must be ``None`` or the one built for.
            generator: not used.

        Raises:
            ValueError: the features carry no superpixels, or they lie on another grid.
        """
        if budget is not None:
            raise ValueError(_fixed_budget(budget))
        options: SVP.Config = self.config  # type: ignore[assignment]
        superpixels, marked = self._superpixels(image)
        order = sort_by(
            order_key(superpixels, image.grid, options.order, options.order_seed), superpixels.lengths
        )
        coarse, shape, query_position, key_position = self._embed(image, superpixels, marked)
        if self.ssa is not None:
            coarse = self.ssa(coarse, image.patches, superpixels.lengths, query_position, key_position)
        tokens = self.mlp(coarse)
        if shape is not None and self.sspe is not None:
            tokens = tokens + self.sspe.to_language(shape)
        return VisualTokens(tokens[order], superpixels.lengths)

    def attention_maps(self, image: ImageFeatures) -> Tensor:
        """``[sum K_i, heads, n]`` where the SSA looks, superpixels in the stored order.

        Raises:
            ValueError: the projector has no SSA.
        """
        if self.ssa is None:
            raise ValueError("svp: attention maps need an SSA; this projector was built with ssa 'none'")
        superpixels, marked = self._superpixels(image)
        coarse, _, query_position, key_position = self._embed(image, superpixels, marked)
        return self.ssa.attention_maps(
            coarse, image.patches, superpixels.lengths, query_position, key_position
        )

    def _superpixels(self, image: ImageFeatures) -> tuple[Superpixels, Tensor | None]:
        superpixels = image.superpixels
        if superpixels is None:
            raise ValueError(
                "svp: the image features carry no superpixels; run the superpixel stage for this grid"
            )
        if superpixels.occupancy.shape[1] != image.patches.shape[1]:
            raise ValueError(
                f"svp: superpixels on {superpixels.occupancy.shape[1]} cells, features on "
                f"{image.patches.shape[1]}; run the superpixel stage for grid {image.grid}"
            )
        return (
            with_background(superpixels, image.grid) if self.background is not None else (superpixels, None)
        )

    def _embed(
        self, image: ImageFeatures, superpixels: Superpixels, marked: Tensor | None
    ) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
        """Pooled superpixels, their SSPE (or ``None``), and its share in the SSA's queries and keys."""
        options: SVP.Config = self.config  # type: ignore[assignment]
        coarse = pool(image.patches, superpixels, options.pooling)
        if self.background is not None and marked is not None:
            coarse = coarse + marked[:, None].to(coarse.dtype) * self.background
        if self.sspe is None or not self._sspe_joined(self.stage):
            return coarse, None, None, None
        shape = self.sspe(superpixels, image.grid)
        if self.sspe.to_attention is None:
            return coarse, shape, None, None
        query_position, key_position = self.sspe.to_attention(shape), None
        if options.ssa == "superpixel_sspe":
            key_position = own_embedding(query_position, smallest_owner(superpixels))
        elif options.ssa == "patch_sspe":
            key_position = self.sspe.to_attention(self.sspe(_cells(image), image.grid))
        return coarse, shape, query_position, key_position


def _cells(image: ImageFeatures) -> Superpixels:
    """Every cell of the grid as a superpixel of its own; the same for all images."""
    (h, w), n = image.grid, image.grid[0] * image.grid[1]
    like = image.superpixels.occupancy if image.superpixels is not None else image.patches
    eye = torch.eye(n, device=like.device, dtype=like.dtype)
    y = torch.arange(h, device=like.device, dtype=like.dtype).repeat_interleave(w)
    x = torch.arange(w, device=like.device, dtype=like.dtype).repeat(h)
    return Superpixels(
        occupancy=eye,
        weights=eye,
        boxes=torch.stack([x / w, y / h, (x + 1) / w, (y + 1) / h], dim=1),
        areas=torch.full((n,), 1 / n, device=like.device, dtype=like.dtype),
        lengths=torch.tensor([n], device=like.device),
    )
