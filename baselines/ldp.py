"""Lightweight down-sample projector (LDP, MobileVLM): MLP, then two depth-wise blocks."""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import LayerNorm2d
from torch import Tensor, nn

from baselines._layers import Baseline, mlp2x, refuse_budget
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["LDP", "squeezed_width"]

KERNEL = 3


def squeezed_width(width: int) -> int:
    """A quarter of ``width``, rounded to a multiple of 8 as MobileNet does: never below 90 % of it."""
    rounded = max(8, (width // 4 + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * (width // 4) else rounded + 8


class DepthwiseBlock(nn.Module):
    """A MobileNetV3 block without expansion: depth-wise 3x3, squeeze-and-excitation, 1x1; all normalised."""

    def __init__(self, width: int, stride: int):
        super().__init__()
        squeezed = squeezed_width(width)
        self.residual = stride == 1
        self.spatial = nn.Sequential(
            nn.Conv2d(width, width, KERNEL, stride, KERNEL // 2, groups=width, bias=False),
            LayerNorm2d(width, eps=1e-5),
            nn.Hardswish(),
        )
        self.gate = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(width, squeezed, 1),
            nn.ReLU(),
            nn.Conv2d(squeezed, width, 1),
            nn.Hardsigmoid(),
        )
        self.mix = nn.Sequential(nn.Conv2d(width, width, 1, bias=False), LayerNorm2d(width, eps=1e-5))

    def forward(self, x: Tensor) -> Tensor:
        """``[b, w, h, w]`` to the same with sides divided by the stride, rounded up."""
        y = self.spatial(x)
        y = self.mix(self.gate(y) * y)
        return x + y if self.residual else y


class LDP(Baseline):
    """MLP2x, then a residual and a strided depth-wise block (MobileVLM).

    Published with stride 2; stride 3 serves the next smaller budget. Larger strides are refused, since
    their 3x3 windows would skip patches.
    """

    name = "ldp"
    reference = "MobileVLM, arXiv 2312.16886; Meituan-AutoML/MobileVLM"
    licence = "Apache-2.0"
    budgets = (144,)

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        stride = self.plan(interface, self.config)
        width = interface.language_width
        self.mlp = mlp2x(interface.vision_width, width)
        self.blocks = nn.Sequential(DepthwiseBlock(width, 1), DepthwiseBlock(width, stride))

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """The stride of the second block, 2 by default; sides that it does not divide are rounded up."""
        height, width = interface.grid
        strides = {-(-height // side) * -(-width // side): side for side in range(KERNEL, 0, -1)}
        if interface.budget is not None and interface.budget not in strides:
            raise refuse_budget(cls.name, interface.budget, strides)
        return 2 if interface.budget is None else strides[interface.budget]

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a cell of the coarser grid, in raster order."""
        tokens = self.blocks(image.as_map(self.mlp(image.patches))).flatten(2).transpose(1, 2)
        self.require_built_budget(budget, tokens.shape[1])
        return VisualTokens.dense(tokens)
