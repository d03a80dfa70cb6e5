"""TokenPacker: coarse queries, each attending to its own block of multi-level patches."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, mlp2x, space_to_depth, token_stride
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["TokenPacker"]


class TokenPacker(Baseline):
    """Region-to-point attention over concatenated encoder levels, then MLP2x (TokenPacker).

    A query is the bilinearly down-sampled patch map; its keys and values are the patches of its block, in
    all levels side by side. There is no residual.
    """

    name = "token_packer"
    reference = "TokenPacker, arXiv 2407.02392; CircleRadon/TokenPacker"
    licence = "none stated"
    budgets = (144, 64, 36)
    needs = ("levels",)

    class Config(ProjectorConfig):
        """Options; ``head_width`` is channels an attention head."""

        head_width: PositiveInt = 128

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.stride = self.plan(interface, self.config)
        width = interface.vision_width
        levels = interface.level_count * width
        self.query, self.query_norm = nn.Linear(width, width, bias=False), nn.LayerNorm(width, eps=1e-6)
        self.key, self.key_norm = mlp2x(levels, width), nn.LayerNorm(width, eps=1e-6)
        self.value, self.value_norm = mlp2x(levels, width), nn.LayerNorm(width, eps=1e-6)
        heads = head_count(width, self.config.head_width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.mlp = mlp2x(width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """Side of a block, 2 by default; it must divide both sides of the grid."""
        if interface.level_count < 1:
            raise ValueError(f"{cls.name} needs further encoder levels; the vision config names none")
        return token_stride(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a block, in raster order."""
        levels = torch.cat(image.levels, dim=-1)
        keys, values = (
            space_to_depth(projected, image.grid, self.stride)
            .unflatten(-1, (self.stride**2, -1))
            .flatten(0, 1)
            for projected in (self.key_norm(self.key(levels)), self.value_norm(self.value(levels)))
        )
        size = (image.grid[0] // self.stride, image.grid[1] // self.stride)
        self.require_built_budget(budget, size[0] * size[1])
        coarse = F.interpolate(image.as_map().float(), size, mode="bilinear", align_corners=False)
        coarse = coarse.flatten(2).transpose(1, 2).to(image.patches.dtype)
        queries = self.query_norm(self.query(coarse))
        attended, _ = self.attention(queries.flatten(0, 1)[:, None], keys, values, need_weights=False)
        return VisualTokens.dense(self.mlp(attended.reshape(queries.shape)))
