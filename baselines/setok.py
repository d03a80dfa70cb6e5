"""SeTok: clusters of patches, a transformer within and one between them."""

from __future__ import annotations

from typing import Any

import torch
from pydantic import PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from baselines._layers import Baseline, head_count, sincos_table, token_count
from harness.projector import ImageFeatures, Interface, ProjectorConfig, VisualTokens

__all__ = ["SeTok", "cluster"]


def cluster(x: Tensor, neighbours: int, threshold: float, fallback: int, count: int | None) -> Tensor:
    """Density-peak clusters with k nearest neighbours (DPC-KNN): the cluster ``0..k-1`` of each row of ``x``.

    Args:
        x: ``[n, d]``, single precision.
        neighbours: how many nearest rows, itself included, a row's density is taken over.
        threshold: rows whose density times distance to the next denser row exceeds it are centres.
        fallback: the number of centres where none exceeds it.
        count: a fixed number of centres instead of the threshold.
    """
    distance = torch.cdist(x, x) / x.shape[-1] ** 0.5
    nearest = distance.topk(min(neighbours, len(x)), largest=False).values
    density = (-nearest.square().mean(-1)).exp()
    order = torch.arange(len(x), device=x.device)
    # Of equally dense rows the earlier counts as denser; the release draws noise for that.
    denser = (density > density[:, None]) | ((density == density[:, None]) & (order < order[:, None]))
    score = density * distance.masked_fill(~denser, float(distance.max())).amin(-1)
    centres = (score > threshold).nonzero().flatten()
    if count is not None or not len(centres):
        centres = score.topk(fallback if count is None else count).indices.sort().values
    labels = distance[:, centres].argmin(-1)
    labels[centres] = torch.arange(len(centres), device=x.device)
    return labels


class ClusterEncoder(nn.Module):
    """Pre-norm attention layers that share one LayerNorm, then one MLP, as released."""

    def __init__(self, width: int, heads: int, layers: int, expansion: int, dropout: float):
        super().__init__()
        self.heads = heads
        self.attention_norm, self.mlp_norm = nn.LayerNorm(width), nn.LayerNorm(width)
        self.layers = nn.ModuleList(
            nn.MultiheadAttention(width, heads, batch_first=True) for _ in range(layers)
        )
        self.hidden, self.output = nn.Linear(width, expansion * width), nn.Linear(expansion * width, width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, apart: Tensor | None = None) -> Tensor:
        """``[b, k, w]`` to the same; rows that ``apart`` (``[b, k, k]``) separates do not see each other."""
        for layer in self.layers:
            mask = None if apart is None else apart.repeat_interleave(self.heads, 0)
            y = self.attention_norm(x)
            x = x + self.dropout(layer(y, y, y, attn_mask=mask, need_weights=False)[0])
        y = self.dropout(F.gelu(self.hidden(self.mlp_norm(x))))
        return x + self.dropout(self.output(y))


class SeTok(Baseline):
    """Clusters the patches of each image and makes a token of each cluster (SeTok).

    Without a budget the number of clusters follows the image.
    """

    name = "setok"
    reference = "SeTok, arXiv 2406.05127; ChocoWu/SeTok"
    licence = "Apache-2.0"
    departs = (
        "is trained as every row is; the release trains its tokenizer by reconstruction and contrast with "
        "text too"
    )
    budgets = ()

    class Config(ProjectorConfig):
        """Options; see :func:`cluster` for ``threshold``. ``layers`` counts attention layers an encoder."""

        threshold: float = 0.5
        layers: PositiveInt = 2
        heads: PositiveInt = 2
        expansion: PositiveInt = 4
        dropout: float = 0.2

    config: Config

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.plan(interface, self.config)
        c, width = self.config, interface.vision_width
        heads = head_count(width, -(-width // c.heads))
        self.within, self.between = (
            ClusterEncoder(width, heads, c.layers, c.expansion, c.dropout) for _ in range(2)
        )
        self.output = nn.Linear(width, interface.language_width)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int | None:
        """The number of clusters; ``None`` adapts."""
        if interface.budget is None:
            return None
        return token_count(cls.name, interface.budget, default=1, most=interface.patch_count)

    def forward(
        self, image: ImageFeatures, *, budget: int | None = None, generator: torch.Generator | None = None
    ) -> VisualTokens:
        """One token a cluster, in the raster order of the centres; elastic."""
        asked, patches = self.asked(budget), image.patches.shape[1]
        count = None if asked is None else token_count(self.name, asked, default=1, most=patches)
        # The release takes 64 of 729 patches (SigLIP's at 384 pixels) as neighbours and as the fallback.
        share = -(-patches * 64 // 729)
        table = sincos_table(image.grid, image.patches.shape[-1]).to(image.patches.device)
        x = image.patches.float() + table
        labels = torch.stack([cluster(one, share, self.config.threshold, share, count) for one in x.detach()])
        encoded = self.within(x.to(image.patches.dtype), labels[:, None] != labels[..., None])
        tokens = []
        for patch_tokens, own in zip(encoded, labels, strict=True):
            member = F.one_hot(own).to(encoded.dtype).T
            means = member @ patch_tokens / member.sum(-1, keepdim=True)
            tokens.append(self.between(means[None])[0])
        merged = VisualTokens.ragged(tokens)
        return VisualTokens(self.output(merged.embeddings), merged.lengths)
