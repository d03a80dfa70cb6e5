"""The Qwen-VL resampler: learned queries, one cross-attention layer."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, sincos_table, token_grid
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["QwenResampler"]


class QwenResampler(Baseline):
    """Cross-attention of learned queries to the patches at language width (Qwen-VL).

    Queries and keys carry fixed 2-D sine-cosine positions: the queries' own grid, resized to the patches'.
    """

    name = "qwen_resampler"
    reference = "Qwen-VL, arXiv 2308.12966; QwenLM/Qwen-VL"
    licence = "Tongyi Qianwen"
    budgets = (256, 144, 64)

    class Config(ProjectorConfig):
        """Options.

        Attributes:
            head_width: channels an attention head.
            output_projection: close with a LayerNorm and a square bias-free projection, as the released
                Qwen-VL and TokenPacker's comparison do.
        """

        head_width: PositiveInt = 128
        output_projection: bool = True

    config: Config
    positions: Tensor

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.size = self.plan(interface, self.config)
        vision, width = interface.vision_width, interface.language_width
        self.queries = nn.Parameter(torch.empty(self.size[0] * self.size[1], width))
        self.register_buffer("positions", sincos_table(self.size, width), persistent=False)
        self.input = nn.Linear(vision, width, bias=False) if vision != width else nn.Identity()
        self.query_norm, self.input_norm = (nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        heads = head_count(width, self.config.head_width)
        self.attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.output = nn.Sequential()
        if self.config.output_projection:
            projection = nn.Linear(width, width, bias=False)
            nn.init.normal_(projection.weight, std=width**-0.5)
            self.output = nn.Sequential(nn.LayerNorm(width, eps=1e-6), projection)
        nn.init.trunc_normal_(self.queries, std=0.02)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The queries' grid; two thirds of the patch grid's sides by default (16 of 24)."""
        return token_grid(cls.name, interface.grid, interface.budget, scale=2 / 3)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a query, in the raster order of the queries' grid."""
        self.require_built_budget(budget, len(self.queries))
        table = self.positions.T.unflatten(1, self.size)[None].float()
        resized = F.interpolate(table, image.grid, mode="bicubic", align_corners=False)
        values = self.input_norm(self.input(image.patches))
        keys = values + resized.flatten(2).transpose(1, 2).to(values.dtype)
        queries = (self.query_norm(self.queries) + self.positions).expand(len(values), -1, -1)
        attended, _ = self.attention(queries, keys, values, need_weights=False)
        return VisualTokens.dense(self.output(attended))
