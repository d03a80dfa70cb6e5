"""The perceiver resampler of the Honeybee comparison: six cross-attention blocks."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, token_count
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["HoneybeeResampler"]


class ResamplerBlock(nn.Module):
    """Queries attend to themselves and the features together; then a SwiGLU network with an inner norm.

    The first residual starts at the normalised queries, as in the released code.
    """

    def __init__(self, width: int, heads: int, hidden: int, dropout: float):
        super().__init__()
        self.query_norm, self.key_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention = nn.MultiheadAttention(width, heads, dropout=dropout, batch_first=True)
        self.norm = nn.LayerNorm(width)
        self.gate, self.up = nn.Linear(width, hidden), nn.Linear(width, hidden)
        self.inner_norm = nn.LayerNorm(hidden, eps=1e-6)
        self.down = nn.Linear(hidden, width)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """``[b, k, w]`` and ``[b, n, w]`` to ``[b, k, w]``."""
        queries = self.query_norm(queries)
        keys = torch.cat([queries, self.key_norm(features)], dim=1)
        queries = queries + self.attention(queries, keys, keys, need_weights=False)[0]
        normed = self.norm(queries)
        return queries + self.down(self.inner_norm(F.silu(self.gate(normed)) * self.up(normed)))


class HoneybeeResampler(Baseline):
    """Learned queries through resampler blocks, then a linear layer (Honeybee)."""

    name = "honeybee_resampler"
    reference = "Honeybee, arXiv 2312.06742; kakaobrain/honeybee"
    licence = "Apache-2.0"
    budgets = (64,)

    class Config(ProjectorConfig):
        """Options; ``head_width`` is channels a head, ``expansion`` the hidden width over the width."""

        blocks: PositiveInt = 6
        head_width: PositiveInt = 64
        expansion: PositiveInt = 4
        dropout: float = 0.1

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        c, width = self.config, interface.vision_width
        self.queries = nn.Parameter(torch.empty(1, self.plan(interface, c), width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.input = nn.Linear(width, width)
        heads = head_count(width, c.head_width)
        self.blocks = nn.ModuleList(
            ResamplerBlock(width, heads, c.expansion * width, c.dropout) for _ in range(c.blocks)
        )
        self.output = nn.Linear(width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """The number of queries; a ninth of the patches by default (64 of 576)."""
        default = -(-interface.patch_count // 9)
        return token_count(cls.name, interface.budget, default=default, most=interface.patch_count)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a query."""
        self.require_built_budget(budget, self.queries.shape[1])
        features = self.input(image.patches)
        queries = self.queries.expand(len(features), -1, -1)
        for block in self.blocks:
            queries = block(queries, features)
        return VisualTokens.dense(self.output(queries))
