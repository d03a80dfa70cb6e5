"""From SAM's candidate masks to quasi-superpixels: the selection of FMA-WSSS, as pure functions.

Source: FMA-WSSS (arXiv 2312.03585, github.com/HAL-42/FMA-WSSS), which SVP (arXiv 2509.13676) builds on.
The gate, the stability score and the box suppression are SAM's own (arXiv 2304.02643, appendix B) with
offsets for each of SAM's three levels: 0 sub-part, 1 part, 2 whole.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor
from torchvision.ops import nms

__all__ = [
    "level_values",
    "mask_boxes",
    "non_maximum_suppression",
    "passes_quality",
    "remove_small_regions",
    "rock_sand_water",
    "stability_score",
]

_EIGHT_NEIGHBOURS = np.ones((3, 3), bool)
_PIXEL_CHUNK = 1 << 18


def level_values(levels: Tensor, values: Sequence[float]) -> Tensor:
    """``[M]`` float32: ``values[level]`` for each of ``levels`` ``[M]``."""
    return torch.as_tensor(values, dtype=torch.float32, device=levels.device)[levels.long()]


def passes_quality(
    predicted_iou: Tensor, levels: Tensor, threshold: float, offsets: Sequence[float]
) -> Tensor:
    """``[M]`` bool: predicted IoU plus its level's offset exceeds ``threshold``."""
    return predicted_iou + level_values(levels, offsets) > threshold


def stability_score(logits: Tensor, offset: float, threshold: float = 0.0) -> Tensor:
    """``[M]``: IoU of the masks cut ``offset`` above and below ``threshold``, of ``logits`` ``[M, H, W]``.

    NaN where even the larger mask is empty, so that such a candidate passes no threshold.
    """
    inner = (logits > threshold + offset).flatten(1).sum(dim=1, dtype=torch.int32)
    return inner / (logits > threshold - offset).flatten(1).sum(dim=1, dtype=torch.int32)


def mask_boxes(masks: Tensor) -> Tensor:
    """``[M, 4]`` float32 ``x1, y1, x2, y2`` of ``masks`` ``[M, H, W]``, last pixel inclusive (as SAM).

    An empty mask gets a box of zeros.
    """
    as_bytes = masks.view(torch.uint8)  # amax over bytes: several times faster than any over bool
    columns, rows = as_bytes.amax(dim=1), as_bytes.amax(dim=2)
    (x1, x2), (y1, y2) = _first_and_last(columns), _first_and_last(rows)
    boxes = torch.stack([x1, y1, x2, y2], dim=1).float()
    return boxes * columns.amax(dim=1)[:, None]


def _first_and_last(hit: Tensor) -> tuple[Tensor, Tensor]:
    return hit.argmax(dim=1), hit.shape[1] - 1 - hit.flip(1).argmax(dim=1)


def non_maximum_suppression(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    """Indices kept, best score first: no two boxes left overlap by more than ``threshold`` IoU."""
    return nms(boxes, scores.to(boxes.dtype), threshold)


def remove_small_regions(mask: np.ndarray, min_area: int) -> tuple[np.ndarray, bool]:
    """Fill holes and drop islands of fewer than ``min_area`` pixels, 8-connected, holes first.

    If every island is small the largest stays. Regions of background that touch the border count as
    holes too, as in SAM.

    Args:
        mask: ``[H, W]`` bool.
        min_area: pixels.

    Returns:
        The mask, and whether it had a small region.
    """
    regions, count = ndimage.label(~mask, _EIGHT_NEIGHBOURS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    small = (sizes < min_area) & (np.arange(count + 1) > 0)
    filled = mask | small[regions] if small.any() else mask
    regions, count = ndimage.label(filled, _EIGHT_NEIGHBOURS)
    sizes = np.bincount(regions.ravel(), minlength=count + 1)
    sizes[0] = 0
    keep = sizes >= max(min_area, 1)
    if count and not keep.any():
        keep[sizes.argmax()] = True
    # a lone small island counts as changed although it stays: SAM's suppression ranks it so
    changed = bool(small.any()) or bool((sizes[1:] < min_area).any())
    return (keep[regions] if int(keep.sum()) < count else filled), changed


def _intersections(first: Tensor, second: Tensor) -> Tensor:
    """``[A, B]`` pixels shared by masks ``[A, P]`` and ``[B, P]``; exact, chunked over the pixels."""
    total = torch.zeros(len(first), len(second), dtype=torch.float64, device=first.device)
    for start in range(0, first.shape[1], _PIXEL_CHUNK):
        part = slice(start, start + _PIXEL_CHUNK)
        total += first[:, part].float() @ second[:, part].float().T
    return total


def rock_sand_water(masks: Tensor, levels: Tensor, threshold: float) -> Tensor:
    """The rock-sand-water filter: whole objects first, parts only where no kept mask covers them.

    Levels are taken from whole to sub-part. The first level that has masks is kept whole; a mask of a
    later level stays if the largest share of it inside any **single** kept mask (not their union) is
    below ``threshold``. Within a level nothing is compared: suppression did that.

    Args:
        masks: ``[M, H, W]`` bool.
        levels: ``[M]`` 0 sub-part, 1 part, 2 whole.
        threshold: 0.3 in FMA-WSSS.

    Returns:
        Indices kept, whole masks first, the given order within a level.
    """
    flat = masks.flatten(1)
    kept = torch.zeros(0, dtype=torch.long, device=masks.device)
    for level in (2, 1, 0):
        index = torch.nonzero(levels == level).flatten()
        if len(index) and len(kept):
            recall = _intersections(flat[index], flat[kept]) / flat[index].sum(dim=1, keepdim=True)
            index = index[recall.amax(dim=1) < threshold]
        kept = torch.cat([kept, index])
    return kept
