"""PruMerge: patches that the class token attends to, each merged with its likest, then MLP2x."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor
from torch.nn import functional as F

from baselines._layers import MLPBaseline, token_count
from harness.precision import without_autocast
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["PruMerge"]


def merge(patches: Tensor, keys: Tensor, attention: Tensor, kept: Tensor, neighbours: int) -> Tensor:
    """``[k + 1, d]``: kept patches with their neighbours' attention-weighted sum, then that of the rest.

    Args:
        patches: ``[n, d]``.
        keys: ``[n, d]``; neighbours are the patches whose keys have the highest cosine.
        attention: ``[n]`` weights.
        kept: ``[k]`` indices, in the order of the tokens.
        neighbours: how many other patches, kept or not, join each kept one.
    """
    unit = F.normalize(keys.float(), dim=-1)
    with without_autocast(unit):
        likeness = (unit[kept] @ unit.T).scatter(1, kept[:, None], -torch.inf)
    joined = likeness.topk(min(neighbours, len(patches) - 1)).indices
    weighted = attention.to(patches.dtype)[:, None] * patches
    rest = torch.ones(len(patches), dtype=torch.bool, device=patches.device).scatter(0, kept, False)
    return torch.cat([patches[kept] + weighted[joined].sum(1), weighted[rest].sum(0, keepdim=True)])


class PruMerge(MLPBaseline):
    """Keeps the outliers of the class token's attention, merges the others into them (LLaVA-PruMerge).

    Without a budget the count adapts to the image: patches above the third quartile by 1.5 interquartile
    ranges, and one token for all dropped ones. With a budget the most attended are kept. As released,
    attention and keys are those of the encoder's last block whichever layer the patches come from, without
    a split into heads, and what the class token gives itself is not shared out among the patches.
    """

    name = "prumerge"
    reference = "LLaVA-PruMerge, arXiv 2403.15388; 42Shawn/LLaVA-PruMerge"
    licence = "Apache-2.0"
    budgets = ()
    needs = ("last_cls_attention", "last_keys")

    class Config(ProjectorConfig):
        """Options.

        Attributes:
            neighbours: patches that are merged into each kept one; ``None`` takes the release's share of the
                grid, 32 of 576.
        """

        neighbours: PositiveInt | None = None

    config: Config

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int | None:
        """The budget, one of which is the merged token; ``None`` adapts."""
        if interface.budget is None:
            return None
        return token_count(cls.name, interface.budget, default=2, least=2, most=interface.patch_count)

    def select(self, attention: Tensor, budget: int | None) -> Tensor:
        """Indices of the kept patches, most attended first; at least one."""
        if budget is not None:
            return attention.topk(budget - 1).indices
        low, high = attention.quantile(attention.new_tensor([0.25, 0.75]))
        outliers = int((attention > high + 1.5 * (high - low)).sum())
        return attention.topk(max(1, outliers)).indices

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The merged patches of each image, most attended first, then one token for the rest; elastic."""
        if image.last_cls_attention is None or image.last_keys is None:
            raise ValueError(f"{self.name} needs the last block's keys and class token's attention")
        asked, most = self.asked(budget), image.patches.shape[1]
        count = None if asked is None else token_count(self.name, asked, default=2, least=2, most=most)
        neighbours = self.config.neighbours or -(-most // 18)
        whole = image.last_keys.transpose(1, 2).flatten(2)
        merged = [
            merge(patches, keys, attention, self.select(attention, count), neighbours)
            for patches, keys, attention in zip(
                image.patches, whole, image.last_cls_attention.float(), strict=True
            )
        ]
        tokens = VisualTokens.ragged(merged)
        return VisualTokens(self.mlp(tokens.embeddings), tokens.lengths)
