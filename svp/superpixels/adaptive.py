"""A quarter of the prompts in place of all: first where no mask lies yet, then where a better one may lie.

Suppression keeps, of all masks of an object, the one with the highest predicted IoU, so two prompt sets agree
where they find the same best prompt. Points are asked in rounds. The first are spread over the image. In each
later round most climb: the lattice neighbours, inside its mask, of the point behind each superpixel found so
far, or nearly found, from far to near, as predicted IoU changes gently from point to point. The rest explore:
the points that whole masks cover least surely, none that one of them covers surely. How sure is the logit
there over the mask's own median: a background reaches over small objects, but thinly. Where to ask is decided
on low-resolution logits, what is kept as on the full grid. An approximation: its agreement with the full grid
is measured, not promised.
"""

from __future__ import annotations

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from svp.superpixels import selection
from svp.superpixels.presets import Settings
from svp.superpixels.prompting import Candidates, Gate, exact_candidates

__all__ = ["adaptive_candidates", "progressive_order"]

# Shares of the budget: of the first round, of each later one; and of each later one what explores.
_FIRST = 1 / 5
_ROUND = 1 / 8
_EXPLORING = 1 / 8
# Points that a whole covers this surely are not explored: the rock-sand-water filter keeps none of its parts.
_SURE = 0.9
_WHOLE = 2
# What falls this short of a threshold is no superpixel, but a lead: a neighbour may pass.
_SHORT = 0.05


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
        settings: stability, suppression and the rock-sand-water filter.
        input_size: ``(h, w)`` of the image inside SAM's padded square.
        share: of the prompts, in 0..1.
        batch: prompts decoded at once.

    Returns:
        Candidates that pass the gate, and how many prompts were asked.

    Raises:
        ValueError: the lattice has no point.
    """
    if not len(points):
        raise ValueError("no prompts to ask; points_per_side must be at least 1")
    side = round(len(points) ** 0.5)
    order = progressive_order(side).to(points.device)
    budget = max(1, int(share * len(points)))
    first = min(budget, batch, -(-budget // round(1 / _FIRST)))
    each = min(batch, -(-budget // round(1 / _ROUND)))
    # the first points lie this far apart
    spacing = max(2, round(side / first**0.5))
    waiting = torch.ones(len(points), dtype=torch.bool, device=points.device)
    cells = _cells(sam, points, input_size)
    now, found = order[:first], None
    while len(now):
        part = exact_candidates(sam, embedding, points[now], lambda iou, level: gate(iou + _SHORT, level))
        part = Candidates(part.logits, part.predicted_iou, part.levels, now[part.points])
        found = part if found is None else _joined(found, part)
        waiting[now] = False
        room = min(each, budget - int((~waiting).sum()))
        if room <= 0:
            break
        rows, height = _survivors(found, cells, settings, sam.mask_threshold)
        at = height[:, cells[1], cells[0]]
        climbing = _neighbours(found.points[rows], at > 0, waiting, side, spacing)
        rest = order[waiting[order]]
        whole = found.levels[rows] == _WHOLE
        if whole.any():
            sure = (at / _usual(height))[whole][:, rest].amax(dim=0)
            # stable: equally sure points stay in the order that spreads them
            ascending = torch.argsort(sure, stable=True)
            rest = rest[ascending[sure[ascending] < _SURE]]
        exploring = rest[: max(round(_EXPLORING * room), room - len(climbing))]
        climbing = climbing[~torch.isin(climbing, exploring)]
        now = torch.cat([exploring, climbing[: room - len(exploring)]])
    assert found is not None
    return _chosen(found, gate(found.predicted_iou, found.levels)), int((~waiting).sum())


def _cells(sam: Sam, points: Tensor, input_size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Low-resolution column and row of each point, inside the image."""
    scale = 4 * sam.prompt_encoder.image_embedding_size[0] / sam.image_encoder.img_size
    place = (points * scale).long()
    x, y = (
        column.clamp(max=max(1, round(length * scale)) - 1)
        for column, length in zip(place.T, reversed(input_size), strict=True)
    )
    return x, y


def _usual(height: Tensor) -> Tensor:
    """``[M, 1]`` median of the positive values of ``height [M, h, w]``, 1 where there are none."""
    inside = torch.where(height > 0, height, torch.nan)
    return inside.flatten(1).nanmedian(dim=1).values[:, None].nan_to_num(nan=1.0)


def _survivors(
    found: Candidates, cells: tuple[Tensor, Tensor], settings: Settings, cut: float
) -> tuple[Tensor, Tensor]:
    """Rows ``[M]`` of what the selection would keep, or nearly keep, by now; their logits above the cut."""
    logits = found.logits[:, : int(cells[1].max()) + 1, : int(cells[0].max()) + 1]
    score = selection.stability_score(logits, settings.stability_score_offset, cut)
    score = score + selection.level_values(found.levels, settings.stability_score_bias)
    stable = (score >= settings.stability_score_thresh - _SHORT) & (logits.flatten(1).amax(dim=1) > cut)
    rows = torch.nonzero(stable).flatten()
    ranked = found.predicted_iou + selection.level_values(found.levels, settings.score_nms_offset)
    boxes = selection.mask_boxes(logits[rows] > cut)
    rows = rows[selection.non_maximum_suppression(boxes, ranked[rows], settings.box_nms_thresh)]
    if settings.rock_sand_water_thresh is not None and len(rows):
        masks = logits[rows] > cut
        rows = rows[selection.rock_sand_water(masks, found.levels[rows], settings.rock_sand_water_thresh)]
    return rows, logits[rows] - cut


def _neighbours(sources: Tensor, inside: Tensor, waiting: Tensor, side: int, spacing: int) -> Tensor:
    """Points still waiting around each of ``sources [M]``, by turns of the masks, without repetition.

    Args:
        sources: lattice points.
        inside: ``[M, side * side]`` points inside each mask.
        waiting: ``[side * side]`` points not asked yet.
        side: of the lattice.
        spacing: of the first points; rings from half of it down to 1 step are walked.
    """
    eight = [(dy, dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1) if dy or dx]
    steps = torch.tensor(
        [(dy * ring, dx * ring) for ring in range(spacing // 2, 0, -1) for dy, dx in eight],
        device=sources.device,
    ).reshape(-1, 2)
    y = torch.div(sources, side, rounding_mode="floor")[:, None] + steps[:, 0]
    x = (sources % side)[:, None] + steps[:, 1]
    there = (y >= 0) & (y < side) & (x >= 0) & (x < side)
    index = (y * side + x).where(there, 0)
    fit = there & waiting[index] & inside.gather(1, index)
    turn = fit.cumsum(dim=1)[fit]  # how many of the same mask come before
    asked = index[fit][torch.argsort(turn, stable=True)].tolist()
    return torch.tensor(list(dict.fromkeys(asked)), dtype=torch.long, device=sources.device)


def _chosen(found: Candidates, kept: Tensor) -> Candidates:
    return Candidates(found.logits[kept], found.predicted_iou[kept], found.levels[kept], found.points[kept])


def _joined(*parts: Candidates) -> Candidates:
    return Candidates(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.predicted_iou for part in parts]),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.points for part in parts]),
    )
