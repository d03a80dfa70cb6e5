"""VisionZip: the most attended patches, and the others merged into evenly spaced anchors."""

from __future__ import annotations

from fractions import Fraction

import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional as F

from baselines._layers import KeptTokens
from harness.precision import without_autocast
from harness.projector import ImageFeatures, ProjectorConfig, VisualTokens

__all__ = ["VisionZip"]


def gather(values: Tensor, indices: Tensor) -> Tensor:
    """Rows ``[b, k]`` of ``[b, n, d]``: ``[b, k, d]``."""
    return values.gather(1, indices[..., None].expand(-1, -1, values.shape[-1]))


class VisionZip(KeptTokens):
    """Dominant patches by class-token attention, contextual ones by likeness of keys, then MLP2x (VisionZip).

    Likeness is that of keys averaged over the encoder's heads.
    """

    name = "visionzip"
    reference = "VisionZip, arXiv 2412.04467; dvlab-research/VisionZip"
    licence = "Apache-2.0"
    departs = "spends no token on the class token, which the release counts among the dominant ones"
    budgets = (192, 128, 64)
    needs = ("cls_attention", "keys")
    default_share = Fraction(1, 9)  # 64 of 576
    least = 2  # one dominant, one contextual

    class Config(ProjectorConfig):
        """Options; ``contextual_share`` of the tokens are contextual (10 of 64 in all released settings)."""

        contextual_share: float = Field(10 / 64, gt=0, lt=1)

    config: Config

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """Dominant tokens in raster order, then the contextual ones; elastic."""
        if image.cls_attention is None or image.keys is None:
            raise ValueError(f"{self.name} needs the class token's attention and the keys")
        batch, patches = image.cls_attention.shape
        count = self.count(patches, self.asked(budget))
        contextual = min(max(1, int(count * self.config.contextual_share + 0.5)), count - 1)
        dominant = image.cls_attention.float().topk(count - contextual).indices.sort().values
        left = torch.ones(batch, patches, device=dominant.device).scatter(1, dominant, 0.0)
        left = left.argsort(descending=True, stable=True)[:, : patches - count + contextual]

        keys = gather(F.normalize(image.keys.float().mean(1), dim=-1), left)
        values = gather(image.patches, left)
        is_anchor = torch.zeros(left.shape[1], dtype=torch.bool, device=left.device)
        is_anchor[torch.arange(contextual) * (left.shape[1] // contextual)] = True
        with without_autocast(keys):
            likest = (keys[:, ~is_anchor] @ keys[:, is_anchor].transpose(1, 2)).argmax(-1)
        member = F.one_hot(likest, contextual).to(values.dtype).transpose(1, 2)
        means = member @ values[:, ~is_anchor] / member.sum(-1, keepdim=True).clamp(min=1)
        tokens = torch.cat([gather(image.patches, dominant), values[:, is_anchor] + means], dim=1)
        return VisualTokens.dense(self.mlp(tokens))
