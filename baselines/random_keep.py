"""Control: MLP2x on randomly kept patches."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from baselines._layers import Baseline, mlp2x, token_count
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["RandomKeep"]


class RandomKeep(Baseline):
    """Keeps a random subset of the patches in raster order, then MLP2x.

    What a compressive projector must beat: the same number of tokens, none of them chosen. All images
    of a call share the positions, so that an image's tokens do not depend on its batch.
    """

    name = "random_keep"
    kind = "control"
    reference = "control"
    licence = "Apache-2.0"
    budgets = (144, 64, 36)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.plan(interface, self.config)
        self.mlp = mlp2x(interface.vision_width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """The number of kept patches; a quarter by default."""
        return cls._count(interface.patch_count, interface.budget)

    @classmethod
    def _count(cls, patches: int, budget: int | None) -> int:
        return token_count(cls.name, budget, default=-(-patches // 4), most=patches)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The kept patches' tokens; elastic. Without a ``generator`` the positions are always the same."""
        patches = image.patches.shape[1]
        count = self._count(patches, self.asked(budget))
        if generator is None:
            seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")
            generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(patches, generator=generator, device=generator.device)[:count]
        kept = drawn.sort().values.to(image.patches.device)
        return VisualTokens.dense(self.mlp(image.patches[:, kept]))
