"""SSA: superpixels gather context from patches by cross-attention with shared SSPE.

The paper (SVP, arXiv 2509.13676) is known here by its abstract and by summaries, not by its text. They tell
of superpixels as queries, patches as keys and values, and SSPE on the queries and, by superpixel, on the
keys; norms, heads, the MLP and who owns a patch are inferred.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svp.pooling import pad, unpad

__all__ = ["SuperpixelAttention", "own_embedding"]


def own_embedding(embeddings: Tensor, owner: Tensor) -> Tensor:
    """``[b, n, c]``: each patch's row of ``embeddings`` ``[S, c]`` by ``owner`` ``[b, n]``, zero for -1."""
    extended = torch.cat([embeddings, embeddings.new_zeros(1, embeddings.shape[1])])
    return extended[owner]


class SuperpixelAttention(nn.Module):
    """One pre-norm cross-attention block: superpixels ask, patches answer.

    ``q_i = z_i + p_i``, ``k_j = x_j + p_s(j)``, ``v_j = x_j``, where ``p`` is SSPE in the width of the
    SSA and ``s(j)`` the superpixel that owns patch ``j``: a superpixel looks first inside itself.

    Args:
        width: ``d``, of superpixels and patches.
        heads: attention heads; must divide ``width``.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        if width % heads:
            raise ValueError(f"ssa_heads {heads} does not divide the vision width {width}")
        self.heads = heads
        self.norm_query, self.norm_key, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.query, self.key, self.value = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))

    def _split(self, tensor: Tensor) -> Tensor:
        return tensor.unflatten(-1, (self.heads, -1)).transpose(1, 2)

    def _project(
        self,
        coarse: Tensor,
        patches: Tensor,
        lengths: Tensor,
        query_position: Tensor | None,
        key_position: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        asked, told = self.norm_query(coarse), self.norm_key(patches)
        placed = told if key_position is None else told + key_position
        asked = asked if query_position is None else asked + query_position
        q = self._split(pad(self.query(asked), lengths))
        return q, self._split(self.key(placed)), self._split(self.value(told))

    def forward(
        self,
        coarse: Tensor,
        patches: Tensor,
        lengths: Tensor,
        query_position: Tensor | None = None,
        key_position: Tensor | None = None,
    ) -> Tensor:
        """Refine pooled superpixels.

        Padding stands on the query side only, so that no superpixel can see it.

        Args:
            coarse: ``[sum K_i, d]`` pooled superpixels ``z``.
            patches: ``[b, n, d]``.
            lengths: ``[b]``.
            query_position: ``[sum K_i, d]`` SSPE of the superpixels.
            key_position: ``[b, n, d]`` or ``[n, d]`` SSPE at the patches.

        Returns:
            ``[sum K_i, d]``.
        """
        q, k, v = self._project(coarse, patches, lengths, query_position, key_position)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        refined = coarse + self.out(unpad(mixed, lengths))
        return refined + self.mlp(self.norm_mlp(refined))

    def attention_maps(
        self,
        coarse: Tensor,
        patches: Tensor,
        lengths: Tensor,
        query_position: Tensor | None = None,
        key_position: Tensor | None = None,
    ) -> Tensor:
        """``[sum K_i, heads, n]``: where each superpixel looks; rows sum to 1. Arguments as forward."""
        q, k, _ = self._project(coarse, patches, lengths, query_position, key_position)
        weights = (q @ k.transpose(2, 3) * q.shape[-1] ** -0.5).softmax(dim=-1)
        return unpad(weights.transpose(1, 2), lengths)
