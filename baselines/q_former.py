"""Q-Former (BLIP-2): a BERT of learned queries with cross-attention in every other layer."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import BertModel

from baselines._layers import Baseline, head_count, token_count
from harness.models.loading import load_strictly
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["QFormer"]

_BERT_SIZES = ("num_hidden_layers", "hidden_size", "num_attention_heads", "intermediate_size")
_SIZES = "{} layers, width {}, {} heads and a feed-forward width of {}"


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

    def start_from(self, taken: Any) -> None:
        """Take over what a BERT's layer has of this one."""
        attention = taken.attention
        parts = [getattr(attention.self, name) for name in ("query", "key", "value")]
        with torch.no_grad():
            self.self_attention.in_proj_weight.copy_(torch.cat([part.weight for part in parts]))
            self.self_attention.in_proj_bias.copy_(torch.cat([part.bias for part in parts]))
        for own, other in (
            (self.self_attention.out_proj, attention.output.dense),
            (self.norms[0], attention.output.LayerNorm),
            (self.hidden, taken.intermediate.dense),
            (self.output, taken.output.dense),
            (self.norms[-1], taken.output.LayerNorm),
        ):
            own.load_state_dict(other.state_dict())


class QFormer(Baseline):
    """Learned queries through a BERT with cross-attention, then a linear layer (BLIP-2)."""

    name = "q_former"
    reference = "BLIP-2, arXiv 2301.12597; salesforce/LAVIS"
    licence = "BSD-3-Clause"
    departs = "starts from random weights or from a BERT, and is never pretrained on captions as BLIP-2's is"
    starts_from = "a BERT in transformers' layout, such as google-bert/bert-base-uncased, as BLIP-2's does"
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

    def start_from(self, source: str) -> None:
        """A BERT's layers and the norm of its embeddings; queries and cross-attention have nothing to take.

        As LAVIS does, the queries' feed-forward layers are those that BERT has for text.
        """
        bert = load_strictly(BertModel, source, add_pooling_layer=False, use_safetensors=True)
        layers = [layer for layer in self.layers if isinstance(layer, QFormerLayer)]
        theirs, heads = bert.config, layers[0].self_attention.num_heads
        needed = (len(layers), self.queries.shape[-1], heads, layers[0].hidden.out_features)
        found = tuple(getattr(theirs, name) for name in _BERT_SIZES)
        if found != needed:
            raise ValueError(
                f"q_former: {source} has {_SIZES.format(*found)}, this Q-Former {_SIZES.format(*needed)}; "
                "name another BERT, or set layers, width and head_width"
            )
        self.query_norm.load_state_dict(bert.embeddings.LayerNorm.state_dict())
        for layer, taken in zip(layers, bert.encoder.layer, strict=True):
            layer.start_from(taken)

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
