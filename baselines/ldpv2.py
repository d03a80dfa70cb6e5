"""LDPv2 (MobileVLM V2): MLP, average pooling, and a depth-wise convolution for position."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from baselines._layers import Baseline, mlp2x, token_grid
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["LDPv2"]


class LDPv2(Baseline):
    """MLP2x, adaptive average pooling, depth-wise 3x3 convolution with residual (MobileVLM V2)."""

    name = "ldpv2"
    reference = "MobileVLM V2, arXiv 2402.03766; Meituan-AutoML/MobileVLM"
    licence = "Apache-2.0"
    budgets = (144,)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.plan(interface, self.config)
        width = interface.language_width
        self.mlp = mlp2x(interface.vision_width, width)
        self.position = nn.Conv2d(width, width, 3, padding=1, groups=width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The token grid; a quarter of the patches by default."""
        return token_grid(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a cell of the coarser grid, in raster order; elastic."""
        size = token_grid(self.name, image.grid, self.asked(budget))
        pooled = F.adaptive_avg_pool2d(image.as_map(self.mlp(image.patches)), size)
        return VisualTokens.dense((pooled + self.position(pooled)).flatten(2).transpose(1, 2))
