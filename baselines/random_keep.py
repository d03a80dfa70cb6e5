"""Control: MLP2x on randomly kept patches."""

from __future__ import annotations

import hashlib

import torch

from baselines._layers import KeptTokens
from harness.projector import ImageFeatures, VisualTokens

__all__ = ["RandomKeep"]


class RandomKeep(KeptTokens):
    """Keeps a random subset of the patches in raster order, then MLP2x.

    What a compressive projector must beat: the same number of tokens, none of them chosen. All images
    of a call share the positions, so that an image's tokens do not depend on its batch.
    """

    name = "random_keep"
    kind = "control"
    reference = "control"
    licence = "Apache-2.0"
    budgets = (144, 64, 36)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The kept patches' tokens; elastic. Without a ``generator`` the positions are always the same."""
        patches = image.patches.shape[1]
        count = self.count(patches, self.asked(budget))
        if generator is None:
            seed = int.from_bytes(hashlib.sha256(self.name.encode()).digest()[:4], "big")
            generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(patches, generator=generator, device=generator.device)[:count]
        kept = drawn.sort().values.to(image.patches.device)
        return VisualTokens.dense(self.mlp(image.patches[:, kept]))
