"""Control: one token for the whole image."""

from __future__ import annotations

from typing import Any

import torch

from baselines._layers import MLPBaseline, token_count
from harness.projector import ImageFeatures, Interface, VisualTokens

__all__ = ["GlobalToken"]


class GlobalToken(MLPBaseline):
    """MLP2x on the mean patch: what remains of the image without any place or object."""

    name = "global_token"
    kind = "control"
    reference = "control"
    licence = "Apache-2.0"
    budgets = (1,)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """One."""
        return token_count(cls.name, interface.budget, default=1, most=1)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token an image."""
        self.require_built_budget(budget, 1)
        return VisualTokens.dense(self.mlp(image.patches.mean(1, keepdim=True)))
