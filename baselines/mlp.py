"""MLP2x, the uncompressed reference: one visual token a patch."""

from __future__ import annotations

from typing import Any

import torch

from baselines._layers import MLPBaseline, refuse_budget
from harness.projector import ImageFeatures, Interface, VisualTokens

__all__ = ["MLP"]


class MLP(MLPBaseline):
    """Linear, GELU, linear on every patch (LLaVA-1.5)."""

    name = "mlp"
    reference = "LLaVA-1.5, arXiv 2310.03744; haotian-liu/LLaVA"
    licence = "Apache-2.0"
    budgets = (576,)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """``n``, the only budget there is without compression."""
        if interface.budget not in (None, interface.patch_count):
            raise refuse_budget(cls.name, interface.budget, [interface.patch_count])
        return interface.patch_count

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """``n`` tokens an image, in raster order."""
        self.require_built_budget(budget, image.patches.shape[1])
        return VisualTokens.dense(self.mlp(image.patches))
