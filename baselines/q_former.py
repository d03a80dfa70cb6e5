"""Q-Former (BLIP-2): a BERT of learned queries with cross-attention in every other layer."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, token_count
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["QFormer"]


class QFormerLayer(nn.Module):
    """A post-norm BERT layer: self-attention, cross-attention where there is one, feed-forward."""

    def __init__(self, width: int, heads: int, vision_width: int | None, dropout: float):
        super().__init__()

        def attention(inputs: int) -> nn.MultiheadAttention:
            return nn.MultiheadAttention(
                width, heads, dropout=dropout, kdim=inputs, vdim=inputs, batch_first=True
            )

        self.self_attention = attention(width)
        self.cross_attention = attention(vision_width) if vision_width else None
        self.hidden, self.output = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width, eps=1e-12) for _ in range(3 if vision_width else 2))
        self.dropout = nn.Dropout(dropout)

    def forward(self, queries: Tensor, features: Tensor) -> Tensor:
        """``[b, k, w]`` and ``[b, n, d]`` to ``[b, k, w]``."""
        attended = self.self_attention(queries, queries, queries, need_weights=False)[0]
        queries = self.norms[0](queries + self.dropout(attended))
        if self.cross_attention is not None:
            attended = self.cross_attention(queries, features, features, need_weights=False)[0]
            queries = self.norms[1](queries + self.dropout(attended))
        fed = self.output(F.gelu(self.hidden(queries)))
        return self.norms[-1](queries + self.dropout(fed))


class QFormer(Baseline):
    """Learned queries through a BERT with cross-attention, then a linear layer (BLIP-2)."""

    name = "q_former"
    reference = "BLIP-2, arXiv 2301.12597; salesforce/LAVIS"
    licence = "BSD-3-Clause"
    departs = "starts from random weights; BLIP-2 starts from bert-base-uncased and pretrains on captions"
    budgets = (32,)

    class Config(ProjectorConfig):
        """Options; ``width`` (BERT-base's by default) is never taken wider than the vision encoder."""

        width: PositiveInt = 768
        layers: PositiveInt = 12
        head_width: PositiveInt = 64
        cross_every: PositiveInt = 2
        dropout: float = 0.1

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        c, vision = self.config, interface.vision_width
        width = min(c.width, vision)
        self.queries = nn.Parameter(torch.empty(1, self.plan(interface, c), width).normal_(std=0.02))
        self.vision_norm = nn.LayerNorm(vision)
        self.query_norm = nn.LayerNorm(width, eps=1e-12)
        self.dropout = nn.Dropout(c.dropout)
        heads = head_count(width, c.head_width)
        self.layers = nn.ModuleList(
            QFormerLayer(width, heads, None if index % c.cross_every else vision, c.dropout)
            for index in range(c.layers)
        )
        self.output = nn.Linear(width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """The number of queries; an eighteenth of the patches by default (32 of 576)."""
        default = -(-interface.patch_count // 18)
        return token_count(cls.name, interface.budget, default=default, most=interface.patch_count)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a query."""
        self.require_built_budget(budget, self.queries.shape[1])
        features = self.vision_norm(image.patches)
        queries = self.dropout(self.query_norm(self.queries)).expand(len(features), -1, -1)
        for layer in self.layers:
            queries = layer(queries, features)
        return VisualTokens.dense(self.output(queries))
