"""Pixel shuffle, then a normalised MLP (InternVL)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines._layers import Baseline, mlp2x, space_to_depth, token_stride
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["PixelShuffle"]


class PixelShuffle(Baseline):
    """Stacks the patches of a block along channels, then LayerNorm and MLP (InternVL 1.5).

    Channels run over the block's patches in raster order (the second version of the released shuffle).
    """

    name = "pixel_shuffle"
    reference = "InternVL 1.5, arXiv 2404.16821; OpenGVLab/InternVL"
    licence = "MIT"
    budgets = (144, 64, 36)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.stride = self.plan(interface, self.config)
        stacked = interface.vision_width * self.stride**2
        self.norm = nn.LayerNorm(stacked)
        self.mlp = mlp2x(stacked, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """Side of a block, 2 by default; it must divide both sides of the grid."""
        return token_stride(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a block, in raster order."""
        blocks = space_to_depth(image.patches, image.grid, self.stride)
        self.require_built_budget(budget, blocks.shape[1])
        return VisualTokens.dense(self.mlp(self.norm(blocks)))
