"""A quarter of the prompts in place of all: first where no mask lies yet, then where a better one may lie.

Suppression keeps, of all masks of an object, the one with the highest predicted IoU, so two prompt sets agree
where they find the same best prompt. Points are asked in rounds. The first are spread over the image. In each
later round most climb: the lattice neighbours, inside its mask, of the point behind each superpixel found so
far, or nearly found, from far to near, as predicted IoU changes gently from point to point. The rest explore:
the points that whole masks cover least surely, none that one of them covers surely. How sure is the logit
there over the mask's own median: a background reaches over small objects, but thinly. Where to ask is decided
on low-resolution logits, what is kept as on the full grid. An approximation: its agreement with the full grid
is measured, not promised.

A round asks few points of an image. Several images are searched side by side, a round of all of them decoded
together; where one image's search goes does not hang on the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from torch import Tensor

from svp.superpixels import selection
from svp.superpixels.presets import Settings
from svp.superpixels.prompting import Candidates, Gate, exact_candidates

__all__ = ["Lattice", "adaptive_candidates", "progressive_order"]

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


@dataclass(frozen=True)
class Lattice:
    """Where one image may be asked.

    Attributes:
        points: ``[side * side, 2]`` x, y in SAM's input frame, a square lattice in raster order.
        input_size: ``(h, w)`` of the image inside SAM's padded square.
    """

    points: Tensor
    input_size: tuple[int, int]

    def __post_init__(self) -> None:
        """Refuse a lattice without a point."""
        if not len(self.points):
            raise ValueError("no prompts to ask; points_per_side must be at least 1")


def adaptive_candidates(
    sam: Sam,
    embeddings: Tensor,
    lattices: Sequence[Lattice],
    gate: Gate,
    settings: Settings,
    *,
    share: float,
    batch: int,
    compute: torch.dtype = torch.float32,
) -> list[tuple[Candidates, int]]:
    """Candidates of at most ``share`` of the prompts of each image.

    Args:
        sam: in eval mode.
        embeddings: ``[B, C, h, w]``.
        lattices: of each image.
        gate: the predicted-IoU gate.
        settings: stability, suppression and the rock-sand-water filter.
        share: of the prompts, in 0..1.
        batch: prompts decoded at once.
        compute: what the decoder multiplies in; where to ask next is reckoned in single precision.

    Returns:
        Of each image its candidates that pass the gate, and how many prompts were asked.
    """
    searches = [_Search(sam, lattice, settings, share) for lattice in lattices]

    def nearly(iou: Tensor, level: Tensor) -> Tensor:
        return gate(iou + _SHORT, level)

    while any(len(search.now) for search in searches):
        points = torch.cat([search.asked for search in searches])
        rounds = torch.tensor([len(search.now) for search in searches], device=points.device)
        owner = torch.repeat_interleave(torch.arange(len(searches), device=points.device), rounds)
        parts = []
        for some in torch.arange(len(points), device=points.device).split(batch):
            prompts = torch.bincount(owner[some], minlength=len(searches)).tolist()
            with torch.autocast(points.device.type, compute, enabled=compute != torch.float32):
                part = exact_candidates(sam, embeddings, points[some], nearly, prompts)
            parts.append(_asked_at(part, some[part.points]))
        found = _joined(*parts)
        for number, search in enumerate(searches):
            own = _chosen(found, owner[found.points] == number)
            search.take(_asked_at(own, own.points - rounds[:number].sum()))
    return [(search.passing(gate), search.count) for search in searches]


class _Search:
    """The rounds of one image: ``now`` is what to ask, :meth:`take` its answers."""

    def __init__(self, sam: Sam, lattice: Lattice, settings: Settings, share: float):
        count = len(lattice.points)
        self._points, self._settings, self._cut = lattice.points, settings, sam.mask_threshold
        self._side = round(count**0.5)
        self._order = progressive_order(self._side).to(lattice.points.device)
        self._cells = _cells(sam, lattice)
        self._waiting = torch.ones(count, dtype=torch.bool, device=lattice.points.device)
        self._budget = max(1, int(share * count))
        self._each = -(-self._budget // round(1 / _ROUND))
        first = -(-self._budget // round(1 / _FIRST))
        # the first points lie this far apart
        self._spacing = max(2, round(self._side / first**0.5))
        self._found: Candidates | None = None
        self.now = self._order[:first]

    @property
    def asked(self) -> Tensor:
        """``[n, 2]`` the points of this round."""
        return self._points[self.now]

    @property
    def count(self) -> int:
        """Prompts asked so far."""
        return int((~self._waiting).sum())

    def take(self, part: Candidates) -> None:
        """The candidates of this round's points, which are numbered by their place in ``now``."""
        if not len(self.now):
            return
        part = _asked_at(part, self.now[part.points])
        self._found = part if self._found is None else _joined(self._found, part)
        self._waiting[self.now] = False
        room = min(self._each, self._budget - self.count)
        self.now = self._next(self._found, room) if room > 0 else self.now[:0]

    def passing(self, gate: Gate) -> Candidates:
        """What was found and passes."""
        assert self._found is not None
        return _chosen(self._found, gate(self._found.predicted_iou, self._found.levels))

    def _next(self, found: Candidates, room: int) -> Tensor:
        rows, height = _survivors(found, self._cells, self._settings, self._cut)
        at = height[:, self._cells[1], self._cells[0]]
        climbing = _neighbours(found.points[rows], at > 0, self._waiting, self._side, self._spacing)
        rest = self._order[self._waiting[self._order]]
        whole = found.levels[rows] == _WHOLE
        if whole.any():
            sure = (at / _usual(height))[whole][:, rest].amax(dim=0)
            # stable: equally sure points stay in the order that spreads them
            ascending = torch.argsort(sure, stable=True)
            rest = rest[ascending[sure[ascending] < _SURE]]
        exploring = rest[: max(round(_EXPLORING * room), room - len(climbing))]
        climbing = climbing[~torch.isin(climbing, exploring)]
        return torch.cat([exploring, climbing[: room - len(exploring)]])


def _cells(sam: Sam, lattice: Lattice) -> tuple[Tensor, Tensor]:
    """Low-resolution column and row of each point, inside the image."""
    scale = 4 * sam.prompt_encoder.image_embedding_size[0] / sam.image_encoder.img_size
    place = (lattice.points * scale).long()
    x, y = (
        column.clamp(max=max(1, round(length * scale)) - 1)
        for column, length in zip(place.T, reversed(lattice.input_size), strict=True)
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


def _asked_at(part: Candidates, points: Tensor) -> Candidates:
    return Candidates(part.logits, part.predicted_iou, part.levels, points)


def _joined(*parts: Candidates) -> Candidates:
    return Candidates(
        torch.cat([part.logits for part in parts]),
        torch.cat([part.predicted_iou for part in parts]),
        torch.cat([part.levels for part in parts]),
        torch.cat([part.points for part in parts]),
    )
