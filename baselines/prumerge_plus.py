"""PruMerge+: PruMerge with patches added at a uniform stride."""

from __future__ import annotations

import torch
from torch import Tensor

from baselines.prumerge import PruMerge

__all__ = ["PruMergePlus"]


class PruMergePlus(PruMerge):
    """Adds uniformly spaced patches to those that PruMerge keeps (LLaVA-PruMerge).

    Without a budget the spacing is a third of the inverse share of kept patches, as released. With one,
    half of the kept patches are the most attended and half are evenly spaced among the others.
    """

    name = "prumerge_plus"
    reference = "LLaVA-PruMerge, arXiv 2403.15388; 42Shawn/LLaVA-PruMerge"
    licence = "Apache-2.0"
    departs = (
        "at a budget keeps as many attended patches as spaced ones (the release spaces over all patches)"
    )
    budgets = ()
    needs = ("last_cls_attention", "last_keys")

    def select(self, attention: Tensor, budget: int | None) -> Tensor:
        """Indices of the kept patches: most attended first, then the spaced ones in raster order."""
        total = len(attention)
        if budget is None:
            kept = super().select(attention, None)
            stride = max(1, total // len(kept) // 3)
            # The release's range ends one short of the last patch.
            spaced = torch.arange(0, total - 1, stride, device=attention.device)
            return torch.cat([kept, spaced[~torch.isin(spaced, kept)]])
        kept = attention.topk(budget // 2).indices
        others = torch.arange(total, device=attention.device)
        others = others[~torch.isin(others, kept)]
        added = budget - 1 - len(kept)
        places = (2 * torch.arange(added, device=attention.device) + 1) * len(others) // (2 * max(1, added))
        return torch.cat([kept, others[places]])
