"""Prompts only where no confident mask lies yet: a quarter of the grid in place of all of it.

The rock-sand-water filter keeps no part of which a whole mask covers enough, so a point well inside an
accepted whole has little left to add. Points are asked in rounds, the first spread over the image; each
later one takes the points that the accepted wholes cover least surely, and those that one of them covers
surely are passed over. How sure is the logit there over the mask's own median: a background reaches over
small objects, but thinly. Where to ask is decided on low-resolution logits, what is kept as on the full
grid. An approximation: its agreement with the full grid is measured, not promised.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from svp.superpixels import selection
from svp.superpixels.presets import Settings
from svp.superpixels.prompting import Candidates, Gate, exact_candidates

__all__ = ["adaptive_candidates", "progressive_order"]

_ROUNDS = 4
_WHOLE = 2
_SURE = 0.9


def progressive_order(side: int) -> Tensor:
    """``[side * side]`` order of a square lattice in which every prefix is spread evenly.

    The recursive order of ordered dithering (Bayer 1973), cut to ``side``.
    """
    rank = torch.zeros(1, 1, dtype=torch.long)
    while len(rank) < side:
        rank = torch.cat([torch.cat([4 * rank, 4 * rank + 2], 1), torch.cat([4 * rank + 3, 4 * rank + 1], 1)])
    return torch.argsort(rank[:side, :side].flatten())


def adaptive_candidates(
    sam: Sam,
    embedding: Tensor,
    points: Tensor,
    gate: Gate,
    settings: Settings,
    *,
    input_size: tuple[int, int],
    share: float,
    batch: int,
) -> tuple[Candidates, int]:
    """Candidates of at most ``share`` of the prompts.

    Args:
        sam: in eval mode.
        embedding: ``[1, C, h, w]``.
        points: ``[side * side, 2]`` x, y in SAM's input frame, a square lattice in raster order.
        gate: the predicted-IoU gate.
        settings: stability and suppression.
        input_size: ``(h, w)`` of the image inside SAM's padded square.
        share: of the prompts, in 0..1.
        batch: prompts decoded at once.

    Returns:
        Candidates that pass the gate, and how many prompts were asked.
    """
    side = round(len(points) ** 0.5)
    waiting = progressive_order(side).to(points.device)
    budget = max(1, int(share * len(points)))
    each, asked = min(batch, -(-budget // _ROUNDS)), 0
    rounds: list[Candidates] = []
    while asked < budget and len(waiting):
        count = min(each, budget - asked)
        now, waiting = waiting[:count], waiting[count:]
        rounds.append(exact_candidates(sam, embedding, points[now], gate))
        asked += len(now)
        scale = rounds[0].logits.shape[-1] / sam.image_encoder.img_size
        valid = [max(1, round(length * scale)) for length in input_size]
        height = _wholes(_joined(rounds), valid, settings, sam.mask_threshold)
        if len(height):
            place = (points[waiting] * scale).long()
            x, y = place[:, 0].clamp(max=valid[1] - 1), place[:, 1].clamp(max=valid[0] - 1)
            sure = _sureness(height)[:, y, x].amax(dim=0)
            # stable: equally sure points stay in the order that spreads them
            ascending = torch.argsort(sure, stable=True)
            waiting = waiting[ascending[sure[ascending] < _SURE]]
    if not rounds:
        raise ValueError("no prompts to ask; points_per_side must be at least 1")
    return _joined(rounds), asked


def _sureness(height: Tensor) -> Tensor:
    """``height`` ``[M, h, w]``, logits above the cut, over the median of each mask's own inside."""
    inside = torch.where(height > 0, height, torch.nan)
    return height / inside.flatten(1).nanmedian(dim=1).values[:, None, None].nan_to_num(nan=1.0)


def _wholes(found: Candidates, valid: list[int], settings: Settings, cut: float) -> Tensor:
    """``[M, h, w]`` logits above the cut of the stable whole masks that suppression leaves."""
    logits = found.logits[:, : valid[0], : valid[1]]
    score = selection.stability_score(logits, settings.stability_score_offset, cut)
    score = score + selection.level_values(found.levels, settings.stability_score_bias)
    stable = (score >= settings.stability_score_thresh) & (logits.flatten(1).amax(dim=1) > cut)
    rows = torch.nonzero(stable).flatten()
    ranked = found.predicted_iou + selection.level_values(found.levels, settings.score_nms_offset)
    boxes = selection.mask_boxes(logits[rows] > cut)
    rows = rows[selection.non_maximum_suppression(boxes, ranked[rows], settings.box_nms_thresh)]
    return logits[rows[found.levels[rows] == _WHOLE]] - cut


def _joined(parts: list[Candidates]) -> Candidates:
    return Candidates(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.predicted_iou for part in parts]),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.points for part in parts]),
    )
