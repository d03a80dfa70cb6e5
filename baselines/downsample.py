"""Control: MLP2x on evenly spaced patches."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from baselines._layers import MLPBaseline, token_grid
from harness.projector import ImageFeatures, Interface, VisualTokens

__all__ = ["Downsample"]


class Downsample(MLPBaseline):
    """Nearest-neighbour down-sampling of the patch map, then MLP2x: no averaging, nothing chosen."""

    name = "downsample"
    kind = "control"
    reference = "control"
    licence = "Apache-2.0"
    budgets = (144, 64, 36)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The token grid; a quarter of the patches by default."""
        return token_grid(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The patch at the centre of each cell of the coarser grid, in raster order; elastic."""
        size = token_grid(self.name, image.grid, self.asked(budget))
        kept = F.interpolate(image.as_map(), size, mode="nearest-exact")
        return VisualTokens.dense(self.mlp(kept.flatten(2).transpose(1, 2)))
