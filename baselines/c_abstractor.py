"""C-Abstractor (Honeybee): convolutions before and after average pooling."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from timm.layers import LayerNorm2d
from timm.models.regnet import RegStage
from torch import nn
from torch.nn import functional as F

from baselines._layers import Baseline, check_grid, mlp2x, token_grid
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["CAbstractor"]


class CAbstractor(Baseline):
    """Learned positions, RegNet stage, average pooling, RegNet stage, MLP (Honeybee).

    A block of a stage is a RegNet bottleneck of constant width: 1x1, depth-wise 3x3,
    squeeze-and-excitation (ratio 1/4) and 1x1 convolutions, each normalised over channels, with SiLU
    and an identity shortcut. The closing MLP uses SiLU too.
    """

    name = "c_abstractor"
    reference = "Honeybee, arXiv 2312.06742; kakaobrain/honeybee"
    licence = "Apache-2.0"
    budgets = (144,)

    class Config(ProjectorConfig):
        """Options.

        Attributes:
            depth: bottlenecks in each of the two stages.
        """

        depth: PositiveInt = 3

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.size = self.plan(interface, self.config)
        width = interface.vision_width
        self.positions = nn.Parameter(torch.empty(1, interface.patch_count, width))
        nn.init.trunc_normal_(self.positions, std=0.02)
        self.before, self.after = (
            RegStage(self.config.depth, width, width, 1, 1, act_layer=nn.SiLU, norm_layer=LayerNorm2d)
            for _ in range(2)
        )
        self.mlp = mlp2x(width, interface.language_width, nn.SiLU)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> tuple[int, int]:
        """The token grid; a quarter of the patches by default."""
        return token_grid(cls.name, interface.grid, interface.budget)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a cell of the coarser grid, in raster order."""
        check_grid(self.name, self.interface.grid, image.grid)
        self.require_built_budget(budget, self.size[0] * self.size[1])
        features = self.before(image.as_map(image.patches + self.positions))
        features = self.after(F.adaptive_avg_pool2d(features, self.size))
        return VisualTokens.dense(self.mlp(features.flatten(2).transpose(1, 2)))
