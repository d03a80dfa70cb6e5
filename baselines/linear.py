"""One linear layer, the first LLaVA's projector: no compression and no nonlinearity."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from baselines._layers import Baseline, refuse_budget
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["Linear"]


class Linear(Baseline):
    """A linear layer on every patch (LLaVA)."""

    name = "linear"
    reference = "LLaVA, arXiv 2304.08485; haotian-liu/LLaVA"
    licence = "Apache-2.0"
    budgets = (576,)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.plan(interface, self.config)
        self.linear = nn.Linear(interface.vision_width, interface.language_width)

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
        return VisualTokens.dense(self.linear(image.patches))
