"""Matryoshka multimodal model (M3): nested average-pooled scales, trained together."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F

from baselines._layers import MLPBaseline, refuse_budget
from harness.projector import ImageFeatures, Interface, VisualTokens

__all__ = ["M3"]


def nested_scales(grid: tuple[int, int]) -> dict[int, int]:
    """Pooling windows by token count: sides halve while both are even, then one token if they are equal."""
    scales, window = {}, 1
    while True:
        scales[grid[0] * grid[1] // window**2] = window
        if grid[0] % (2 * window) or grid[1] % (2 * window):
            break
        window *= 2
    if grid[0] == grid[1]:
        scales[1] = grid[0]
    return scales


class M3(MLPBaseline):
    """MLP2x, then average pooling to one of several nested scales (M3).

    The loss of a training step is averaged over all scales; a scale is chosen when the model is used.
    """

    name = "m3"
    reference = "M3, arXiv 2405.17430; mu-cai/matryoshka-mm"
    licence = "Apache-2.0"
    budgets = (576, 144, 36, 9, 1)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> dict[int, int]:
        """The nested scales; the budget must be one of them, by default a quarter of the patches."""
        scales = nested_scales(interface.grid)
        if interface.budget is not None and interface.budget not in scales:
            raise refuse_budget(cls.name, interface.budget, scales)
        return scales

    def training_budgets(self, step: int, generator: torch.Generator) -> list[int | None]:
        """Every scale, in every step."""
        return list(self.planned)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The tokens of one scale, in raster order; elastic over the nested scales."""
        scales = nested_scales(image.grid)
        count = self.asked(budget)
        if count is None:
            quarter = image.patches.shape[1] // 4
            count = quarter if quarter in scales else image.patches.shape[1]
        if count not in scales:
            raise refuse_budget(self.name, count, scales)
        pooled = F.avg_pool2d(image.as_map(self.mlp(image.patches)), scales[count])
        return VisualTokens.dense(pooled.flatten(2).transpose(1, 2))
