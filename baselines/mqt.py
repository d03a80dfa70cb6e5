"""Matryoshka query transformer (MQT): any number of leading queries."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, sincos_table, token_count, token_grid
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["MQT"]


class MQT(Baseline):
    """One cross-attention at vision width, of which the first ``m`` queries are kept (MQT).

    Keys are positions alone, values the features. The first training stage keeps all queries, the second
    an even number of them drawn anew in each step.
    """

    name = "mqt"
    reference = "MQT-LLaVA, arXiv 2405.19315; gordonhu608/MQT-LLaVA"
    licence = "Apache-2.0"
    budgets = (256, 144, 64, 36, 16, 8, 4, 2)

    class Config(ProjectorConfig):
        """Options; ``head_width`` is channels an attention head."""

        head_width: PositiveInt = 64

    config: Config
    positions: Tensor

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.size = self.plan(interface, self.config)
        width = interface.vision_width
        self.queries = nn.Parameter(torch.empty(self.size[0] * self.size[1], width))
        nn.init.trunc_normal_(self.queries, std=0.02)
        self.register_buffer("positions", sincos_table(self.size, width), persistent=False)
        self.query_norm, self.key_norm, self.value_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(3))
        heads = head_count(width, self.config.head_width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.output = nn.Linear(width, interface.language_width, bias=False)
        nn.init.normal_(self.output.weight, std=interface.language_width**-0.5)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The queries' grid, two thirds of the patch grid's sides (16 of 24); a budget is at most all."""
        size = token_grid(cls.name, interface.grid, None, scale=2 / 3)
        queries = size[0] * size[1]
        token_count(cls.name, interface.budget, default=queries, most=queries)
        return size

    def training_budgets(self, step: int, generator: torch.Generator) -> list[int | None]:
        """All queries in stage 1, also while aligning; in stage 2 an even number, uniform up to all."""
        if self.stage == 1 or self.aligning or len(self.queries) < 2:
            return [len(self.queries)]
        pairs = torch.randint(len(self.queries) // 2, (), generator=generator, device=generator.device)
        return [2 * (int(pairs) + 1)]

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token for each of the leading queries; elastic, all of them by default."""
        most = len(self.queries)
        count = token_count(self.name, self.asked(budget), default=most, most=most)
        table = self.positions.T.unflatten(1, self.size)[None].float()
        resized = F.interpolate(table, image.grid, mode="bicubic", align_corners=False)
        batch = len(image.patches)
        keys = self.key_norm(resized.flatten(2).transpose(1, 2).to(image.patches.dtype))
        queries = self.query_norm(self.queries[:count] + self.positions[:count])
        attended, _ = self.attention(
            queries.expand(batch, -1, -1),
            keys.expand(batch, -1, -1),
            self.value_norm(image.patches),
            need_weights=False,
        )
        return VisualTokens.dense(self.output(attended))
