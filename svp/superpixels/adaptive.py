"""Prompts only where no whole object lies yet: a quarter of the grid in place of all of it.

The rock-sand-water filter keeps no part of which a whole mask covers enough, so a point inside an
accepted whole has little left to add. Points are asked in rounds, each spread over the image; after a
round those that an accepted whole covers are passed over. Scores and suppression work on the
low-resolution logits, so that only the survivors are scaled up. An approximation: its agreement with
the full grid is measured, not promised.
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
    """Stable, de-duplicated candidates of at most ``share`` of the prompts.

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
        Candidates left after suppression, and how many prompts were asked.
    """
    side = round(len(points) ** 0.5)
    waiting = progressive_order(side).to(points.device)
    budget = max(1, int(share * len(points)))
    each, asked = min(batch, -(-budget // _ROUNDS)), 0
    kept = None
    while asked < budget and len(waiting):
        count = min(each, budget - asked)
        now, waiting = waiting[:count], waiting[count:]
        found = exact_candidates(sam, embedding, points[now], gate)
        asked += len(now)
        scale = found.logits.shape[-1] / sam.image_encoder.img_size
        valid = [max(1, round(length * scale)) for length in input_size]
        found = _stable(found, valid, settings, sam.mask_threshold)
        kept = found if kept is None else _joined(kept, found)
        inner = kept.logits[:, : valid[0], : valid[1]] > sam.mask_threshold
        ranked = kept.predicted_iou + selection.level_values(kept.levels, settings.score_nms_offset)
        best = selection.non_maximum_suppression(selection.mask_boxes(inner), ranked, settings.box_nms_thresh)
        kept, inner = _rows(kept, best), inner[best]
        covered = inner[kept.levels == _WHOLE].any(dim=0)
        place = (points[waiting] * scale).long()
        x, y = place[:, 0].clamp(max=valid[1] - 1), place[:, 1].clamp(max=valid[0] - 1)
        waiting = waiting[~covered[y, x]]
    if kept is None:
        raise ValueError("no prompts to ask; points_per_side must be at least 1")
    return kept, asked


def _rows(candidates: Candidates, rows: Tensor) -> Candidates:
    return Candidates(
        candidates.logits[rows],
        candidates.predicted_iou[rows],
        candidates.levels[rows],
        candidates.points[rows],
    )


def _joined(one: Candidates, other: Candidates) -> Candidates:
    return Candidates(
        torch.cat([one.logits, other.logits]),
        torch.cat([one.predicted_iou, other.predicted_iou]),
        torch.cat([one.levels, other.levels]),
        torch.cat([one.points, other.points]),
    )


def _stable(found: Candidates, valid: list[int], settings: Settings, threshold: float) -> Candidates:
    logits = found.logits[:, : valid[0], : valid[1]]
    score = selection.stability_score(logits, settings.stability_score_offset, threshold)
    score = score + selection.level_values(found.levels, settings.stability_score_bias)
    stable = (score >= settings.stability_score_thresh) & (logits.flatten(1).amax(dim=1) > threshold)
    return _rows(found, torch.nonzero(stable).flatten())
