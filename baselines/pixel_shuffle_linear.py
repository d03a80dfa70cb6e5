"""Pixel shuffle, then one linear layer (SmolVLM, nanoVLM)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines._layers import Baseline, space_to_depth, token_stride
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["PixelShuffleLinear"]


class PixelShuffleLinear(Baseline):
    """Stacks the patches of a block along channels, then one bias-free linear layer (SmolVLM)."""

    name = "pixel_shuffle_linear"
    reference = "SmolVLM, arXiv 2504.05299; huggingface/nanoVLM"
    licence = "Apache-2.0"
    budgets = (144, 64, 36)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.stride = self.plan(interface, self.config)
        stacked = interface.vision_width * self.stride**2
        self.linear = nn.Linear(stacked, interface.language_width, bias=False)
        nn.init.normal_(self.linear.weight, std=0.02)

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
        return VisualTokens.dense(self.linear(blocks))
