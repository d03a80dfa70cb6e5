"""D-Abstractor (Honeybee): deformable attention around learned reference points."""

from __future__ import annotations

import math
from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, check_grid, head_count, token_grid
from harness.precision import without_autocast
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["DAbstractor", "DeformableAttention"]


class DeformableAttention(nn.Module):
    """Heads that read a few points around each reference point (Deformable DETR, arXiv 2010.04159)."""

    def __init__(self, width: int, heads: int, points: int):
        super().__init__()
        self.heads, self.points = heads, points
        self.offsets = nn.Linear(width, heads * points * 2)
        self.weights = nn.Linear(width, heads * points)
        self.value, self.output = nn.Linear(width, width), nn.Linear(width, width)
        angles = torch.arange(heads) * (2 * math.pi / heads)
        ring = torch.stack([angles.cos(), angles.sin()], -1)
        ring = ring / ring.abs().amax(-1, keepdim=True)
        for layer in (self.offsets, self.weights):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        for layer in (self.value, self.output):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.zeros_(layer.bias)
        with torch.no_grad():
            # Head by head in another direction, point by point further out, in patches.
            self.offsets.bias.copy_((ring[:, None] * torch.arange(1, points + 1)[:, None]).flatten())

    def forward(self, queries: Tensor, references: Tensor, features: Tensor, grid: tuple[int, int]) -> Tensor:
        """Queries ``[b, k, w]``, references ``[k, 2]`` (x, y in 0..1), features ``[b, n, w]``."""
        b, k, width = queries.shape
        size = torch.tensor([grid[1], grid[0]], device=queries.device)
        # Sampling positions need single precision, as in the released code.
        with without_autocast(queries):
            layer = self.offsets
            offsets = F.linear(queries.float(), layer.weight.float(), layer.bias.float())
        offsets = offsets.unflatten(-1, (self.heads, self.points, 2)) / size
        places = 2 * (references.float()[:, None, None] + offsets) - 1
        weights = self.weights(queries).float().unflatten(-1, (self.heads, self.points)).softmax(-1)
        maps = self.value(features).float().transpose(1, 2).reshape(b * self.heads, -1, *grid)
        places = places.transpose(1, 2).reshape(b * self.heads, k, self.points, 2)
        samples = F.grid_sample(maps, places, align_corners=False)
        read = (samples * weights.transpose(1, 2).reshape(b * self.heads, 1, k, self.points)).sum(-1)
        return self.output(read.reshape(b, width, k).transpose(1, 2).to(queries.dtype))


class DecoderLayer(nn.Module):
    """Self-attention, deformable cross-attention, feed-forward; each with residual, then LayerNorm."""

    def __init__(self, width: int, heads: int, points: int, hidden: int, dropout: float):
        super().__init__()
        self.self_attention = nn.MultiheadAttention(width, heads, batch_first=True)
        self.cross_attention = DeformableAttention(width, heads, points)
        self.hidden, self.output = nn.Linear(width, hidden), nn.Linear(hidden, width)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(
        self, x: Tensor, positions: Tensor, references: Tensor, features: Tensor, grid: tuple[int, int]
    ) -> Tensor:
        """Target ``[b, k, w]`` and its positions ``[b, k, w]`` to the next target."""
        placed = x + positions
        attended = self.self_attention(placed, placed, x, need_weights=False)[0]
        x = self.norms[0](x + self.dropout(attended))
        attended = self.cross_attention(x + positions, references, features, grid)
        x = self.norms[1](x + self.dropout(attended))
        return self.norms[2](x + self.dropout(self.output(F.relu(self.hidden(x)))))


class DAbstractor(Baseline):
    """Deformable decoder layers over the patch map, then a linear layer (Honeybee).

    Targets are learned; their positions are the average-pooled patches; reference points start on a
    uniform grid and are learned.
    """

    name = "d_abstractor"
    reference = "Honeybee, arXiv 2312.06742; kakaobrain/honeybee"
    licence = "Apache-2.0"
    budgets = (144,)

    class Config(ProjectorConfig):
        """Options; the defaults are those of Deformable DETR; ``hidden`` is at most the vision width."""

        layers: PositiveInt = 6
        heads: PositiveInt = 8
        points: PositiveInt = 4
        hidden: PositiveInt = 1024
        dropout: float = 0.1

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        c, width, grid = self.config, interface.vision_width, interface.grid
        self.size = self.plan(interface, c)
        self.positions = nn.Parameter(torch.empty(1, interface.patch_count, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.targets = nn.Parameter(torch.empty(self.size[0] * self.size[1], width).normal_())
        axes = (
            torch.linspace(0.5, cells - 0.5, count) / cells
            for cells, count in zip(grid, self.size, strict=True)
        )
        rows, columns = torch.meshgrid(*axes, indexing="ij")
        self.references = nn.Parameter(torch.stack([columns.flatten(), rows.flatten()], -1))
        heads = head_count(width, -(-width // c.heads))
        self.layers = nn.ModuleList(
            DecoderLayer(width, heads, c.points, min(c.hidden, width), c.dropout) for _ in range(c.layers)
        )
        self.output = nn.Linear(width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The queries' grid; a quarter of the patches by default."""
        return token_grid(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a query, in the raster order of the queries' grid."""
        check_grid(self.name, self.interface.grid, image.grid)
        self.require_built_budget(budget, len(self.targets))
        features = image.patches + self.positions
        places = F.adaptive_avg_pool2d(image.as_map(features), self.size).flatten(2).transpose(1, 2)
        x = self.targets.expand(len(features), -1, -1)
        for layer in self.layers:
            x = layer(x, places, self.references, features, image.grid)
        return VisualTokens.dense(self.output(x))
