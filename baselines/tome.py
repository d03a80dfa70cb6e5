"""ToMe: the likest patches merged inside the encoder, a few in every block, then MLP2x."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from baselines._layers import KeptTokens
from harness.precision import without_autocast
from harness.projector import EncoderHook, ImageFeatures, ProjectorConfig, VisualTokens

__all__ = ["BipartiteMerging", "ToMe", "bipartite_merge", "merge_schedule"]


def merge_schedule(patches: int, budget: int, blocks: int) -> list[int]:
    """How many tokens each block merges away: the same number in all, the last ones fewer.

    No block can merge more than half of its tokens, so a strong reduction merges more early.

    Raises:
        ValueError: halving in every block does not reach the budget.
    """
    for rate in range(patches):
        counts, left = [], patches
        for _ in range(blocks):
            counts.append(min(rate, left // 2, left - budget))
            left -= counts[-1]
        if left == budget:
            return counts
    raise ValueError(
        f"tome cannot merge {patches} patches into {budget} tokens in {blocks} blocks: a block halves at most"
    )


def bipartite_merge(tokens: Tensor, keys: Tensor, sizes: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Merge away ``count`` tokens of each image (bipartite soft matching, section 3 of the paper).

    Tokens are dealt alternately into two sets; each of the first has an edge to its likest of the
    second; the ``count`` strongest edges are merged by the mean weighted with sizes. What is left of the
    first set, in order, then the second.

    Args:
        tokens: ``[b, k, d]``.
        keys: ``[b, k, m]``, whose cosine is the likeness.
        sizes: ``[b, k]`` patches that each token stands for.
        count: at most ``k // 2``.

    Returns:
        ``[b, k - count, d]`` and ``[b, k - count]``.
    """
    unit = F.normalize(keys.float(), dim=-1)
    with without_autocast(unit):
        strength, target = (unit[:, 1::2] @ unit[:, 0::2].transpose(1, 2)).max(-1)
    order = strength.argsort(dim=-1, descending=True, stable=True)
    gone, stay = order[:, :count], order[:, count:].sort(-1).values
    target = target.gather(1, gone)
    # The size rides along as one more channel.
    weighted = torch.cat([tokens * sizes[..., None], sizes[..., None]], -1)
    first, second = weighted[:, 1::2], weighted[:, 0::2]

    def wide(index: Tensor) -> Tensor:
        return index[..., None].expand(-1, -1, weighted.shape[-1])

    second = second.scatter_add(1, wide(target), first.gather(1, wide(gone)))
    merged = torch.cat([first.gather(1, wide(stay)), second], 1)
    return merged[..., :-1] / merged[..., -1:], merged[..., -1]


class BipartiteMerging(EncoderHook):
    """Merging between attention and MLP of every block, with proportional attention."""

    def __init__(self, patches: int, budget: int, proportional: bool):
        self.patches, self.budget, self.proportional = patches, budget, proportional

    def attention_bias(self, sizes: Tensor) -> Tensor | None:
        """The log of the sizes: a token weighs in the softmax as much as the patches it stands for."""
        return sizes.log() if self.proportional else None

    def between(
        self, tokens: Tensor, keys: Tensor, sizes: Tensor, *, block: int, blocks: int
    ) -> tuple[Tensor, Tensor]:
        """Merge by keys averaged over heads."""
        count = merge_schedule(self.patches, self.budget, blocks)[block]
        return (tokens, sizes) if count == 0 else bipartite_merge(tokens, keys.mean(1), sizes, count)


class ToMe(KeptTokens):
    """Token merging (ToMe) in the vision encoder, then MLP2x on the merged tokens.

    Reimplemented from the paper. As there, the tokens' order is the one that merging leaves.
    """

    name = "tome"
    reference = "ToMe, arXiv 2210.09461, sections 3 and 4 (reimplemented from the paper)"
    licence = "CC-BY-NC-4.0 (the authors' code, not used)"
    budgets = (144, 64, 36)
    needs = ("encoder_tokens",)

    class Config(ProjectorConfig):
        """Options; ``proportional`` attention is the paper's, for encoders trained without merging."""

        proportional: bool = True

    config: Config

    @classmethod
    def encoder_hook(
        cls, grid: tuple[int, int], budget: int | None, config: ProjectorConfig
    ) -> EncoderHook | None:
        """Merging down to the budget."""
        assert isinstance(config, cls.Config)
        patches = grid[0] * grid[1]
        return BipartiteMerging(patches, cls.count(patches, budget), config.proportional)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """The merged tokens of the encoder."""
        if image.encoder_tokens is None:
            raise ValueError(f"{self.name} needs the tokens that the encoder gives under its hook")
        self.require_built_budget(budget, image.encoder_tokens.shape[1])
        return VisualTokens.dense(self.mlp(image.encoder_tokens))
