"""Control: rectangles of a grid in the place of superpixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import MLPBaseline, token_grid
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["GridRegions"]


def cell_boxes(grid: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``[k, 4]`` normalised ``x1, y1, x2, y2`` of the patches that adaptive pooling averages for a cell."""
    edges = [
        [(i * cells // count / cells, -(-(i + 1) * cells // count) / cells) for i in range(count)]
        for cells, count in zip(grid, size, strict=True)
    ]
    return torch.tensor([[x1, y1, x2, y2] for y1, y2 in edges[0] for x1, x2 in edges[1]])


class GridRegions(MLPBaseline):
    """Mean patch of each rectangle through MLP2x, plus an MLP of the rectangle's box.

    Region tokens with geometry, but regions that ignore the image: what remains of a region projector
    without segmentation.
    """

    name = "grid_regions"
    kind = "control"
    reference = "control"
    licence = "Apache-2.0"
    budgets = (36,)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        width = interface.vision_width
        self.position = nn.Sequential(
            nn.Linear(4, width), nn.GELU(), nn.Linear(width, interface.language_width)
        )

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The grid of rectangles; a quarter of the patch grid's sides by default (6 of 24)."""
        return token_grid(cls.name, interface.grid, interface.budget, scale=0.25)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a rectangle, in raster order; elastic."""
        size = token_grid(self.name, image.grid, self.asked(budget), scale=0.25)
        pooled = F.adaptive_avg_pool2d(image.as_map(), size).flatten(2).transpose(1, 2)
        boxes = cell_boxes(image.grid, size).to(pooled)
        return VisualTokens.dense(self.mlp(pooled) + self.position(boxes))
