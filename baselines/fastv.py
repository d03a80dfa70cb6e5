"""FastV: visual tokens dropped inside the language model, after MLP2x on every patch."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor

from baselines._layers import MLPBaseline, token_count
from harness.projector import ImageFeatures, Interface, LanguageHook, ProjectorConfig, VisualTokens

__all__ = ["FastV", "MostAttended"]


class MostAttended(LanguageHook):
    """Keeps the visual tokens that the question's last token attends to most."""

    def __init__(self, layer: int, budget: int):
        self.layer, self.budget = layer, budget

    def kept(self, count: int) -> int:
        """The budget, where there are as many."""
        return min(self.budget, count)

    def keep(self, attention: Tensor) -> Tensor:
        """The most attended, in order."""
        return attention.topk(self.kept(len(attention))).indices.sort().values


class FastV(MLPBaseline):
    """All patches enter the language model; after layer K only the most attended stay (FastV).

    ``budget`` counts the tokens of the later layers. At the input there are as many as without any
    compression, which is what ``visual_tokens`` says; ``layer_tokens`` in the main table is the mean
    over layers.
    """

    name = "fastv"
    reference = "FastV, arXiv 2403.06764; pkunlp-icler/FastV"
    licence = "none stated"
    departs = (
        "is trained with every visual token and drops some only when it answers, as published; the rows "
        "beside it are trained with the tokens that they answer with (option in_training)"
    )
    budgets = (144, 64, 36)

    class Config(ProjectorConfig):
        """Options.

        Attributes:
            layer: K, the layers that see all tokens; 2 in the release.
            in_training: drop while training too; published as a plug-in for finished models, so off.
        """

        layer: PositiveInt = 2
        in_training: bool = False

    config: Config

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """Tokens that stay; a quarter of the patches by default (the release's ratio of 75 %)."""
        patches = interface.patch_count
        return token_count(cls.name, interface.budget, default=-(-patches // 4), most=patches)

    def llm_hook(self) -> LanguageHook | None:
        """Dropping after layer K; not in training unless asked for."""
        if self.training and not self.config.in_training:
            return None
        return MostAttended(self.config.layer, self.planned)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """``n`` tokens an image, in raster order."""
        self.require_built_budget(budget, self.planned)
        return VisualTokens.dense(self.mlp(image.patches))
