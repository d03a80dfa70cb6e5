"""Average pooling, then MLP2x (DeCo): compression with no parameter of its own."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from baselines._layers import MLPBaseline, token_grid
from harness.projector import ImageFeatures, Interface, VisualTokens

__all__ = ["AveragePool"]


class AveragePool(MLPBaseline):
    """Adaptive average pooling of the patch map to a coarser grid, then MLP2x (DeCo)."""

    name = "avg_pool"
    reference = "DeCo, arXiv 2405.20985; yaolinli/DeCo"
    licence = "BSD-3-Clause"
    budgets = (144, 64)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The token grid; a quarter of the patches by default."""
        return token_grid(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a cell of the coarser grid, in raster order; elastic."""
        size = token_grid(self.name, image.grid, self.asked(budget))
        pooled = F.adaptive_avg_pool2d(image.as_map(), size)
        return VisualTokens.dense(self.mlp(pooled.flatten(2).transpose(1, 2)))
