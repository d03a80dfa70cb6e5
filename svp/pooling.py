"""Coarse superpixel embeddings: the mean of the patch embeddings under each mask, ragged and batched."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from harness.projector import Superpixels

__all__ = ["binary_cells", "order_key", "pad", "pool", "smallest_owner", "unpad", "with_background"]

_COVERED = 0.5  # a cell belongs to a mask that covers at least half of it


def _places(lengths: Tensor) -> tuple[Tensor, Tensor]:
    """Image and place within it of each packed row: two ``[sum K_i]`` int64."""
    image = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    first = torch.cumsum(lengths, 0) - lengths
    return image, torch.arange(len(image), device=lengths.device) - first[image]


def pad(packed: Tensor, lengths: Tensor) -> Tensor:
    """``[b, max K_i, ...]`` from ``[sum K_i, ...]``, zeros behind."""
    result = packed.new_zeros(len(lengths), int(lengths.max()), *packed.shape[1:])
    return result.index_put(_places(lengths), packed)


def unpad(padded: Tensor, lengths: Tensor) -> Tensor:
    """``[sum K_i, ...]`` from ``[b, max K_i, ...]``."""
    return padded[_places(lengths)]


def binary_cells(occupancy: Tensor) -> Tensor:
    """``[S, n]`` bool: the cells inside each mask, on the patch grid.

    A mask that vanishes there (covers half of no cell) takes every cell that it touches.

    Args:
        occupancy: ``[S, n]`` in 0..1.
    """
    inside = occupancy >= _COVERED
    vanished = ~inside.any(dim=1, keepdim=True)
    return inside | (vanished & (occupancy > 0))


def pool(patches: Tensor, superpixels: Superpixels, mode: str) -> Tensor:
    """``z_i = sum_p M_i(p) X(p) / sum_p M_i(p)``: the mean under each mask, as summaries of SVP tell it.

    At which resolution they do not say; the modes are those of its authors' TUSS (``up_emb_avg``, its
    default, and ``down_mask_avg``).

    Args:
        patches: ``[b, n, d]``.
        superpixels: of the same ``b`` images.
        mode: ``up`` averages the bilinearly up-sampled patch map under the mask at full resolution;
            ``down`` averages the patches whose cell is at least half covered, and falls back to ``up``
            where there is none.

    Returns:
        ``[sum K_i, d]``.
    """
    weights = superpixels.weights.to(patches.dtype)
    if mode == "down":
        inside = (superpixels.occupancy >= _COVERED).to(patches.dtype)
        count = inside.sum(dim=1, keepdim=True)
        weights = torch.where(count > 0, inside / count.clamp(min=1), weights)
    return unpad(pad(weights, superpixels.lengths) @ patches, superpixels.lengths)


def smallest_owner(superpixels: Superpixels) -> Tensor:
    """``[b, n]`` int64: the packed row of the smallest mask that covers each patch, -1 where none does.

    Smallest on top is how FMA-WSSS paints overlapping masks (``area_smaller``). Of equally small ones the
    first in raster order of their boxes owns it, whatever order they are stored in.
    """
    lengths = superpixels.lengths
    inside = binary_cells(superpixels.occupancy)
    rank = _by_area(superpixels, superpixels.areas)
    ranks = rank[:, None].expand_as(inside).masked_fill(~inside, len(rank))
    padded = torch.where(_valid(lengths)[..., None], pad(ranks, lengths), len(rank))
    smallest, place = padded.min(dim=1)
    first = torch.cumsum(lengths, 0) - lengths
    return torch.where(smallest < len(rank), place + first[:, None], -1)


def _valid(lengths: Tensor) -> Tensor:
    return torch.arange(int(lengths.max()), device=lengths.device) < lengths[:, None]


def _by_area(superpixels: Superpixels, areas: Tensor) -> Tensor:
    """``[S]`` int64 ranks by ``areas``, ties by the box in raster order, then by the cells covered."""
    x1, y1, x2, y2 = (superpixels.boxes.double() * 0x7FFF).round().long().T
    shares = (superpixels.occupancy.double() * 255).round().long()
    mixed = torch.arange(1, shares.shape[1] + 1, device=shares.device) * 6364136223846793005
    # whole numbers: a sum of floats would hang on the batch
    cells = (shares * ((mixed ^ (mixed >> 32)) * 6364136223846793005)).sum(dim=1)
    order = torch.arange(len(areas), device=areas.device)
    for key in (cells, y1 << 48 | x1 << 32 | y2 << 16 | x2, areas):
        order = order[torch.argsort(key[order], stable=True)]
    return torch.empty_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def order_key(superpixels: Superpixels, grid: tuple[int, int], order: str, seed: int = 0) -> Tensor:
    """``[sum K_i]`` sort key of the tokens of each image; smaller comes first.

    Args:
        superpixels: ragged superpixels.
        grid: ``(h, w)``.
        order: ``area`` (largest first, equally large ones in raster order of their boxes), ``raster`` (by
            the box's centre, row by row of patches), ``random`` (drawn by a hash of each superpixel's own
            geometry, so that it does not depend on the batch), ``stored`` (as in the store).
        seed: of ``random``.
    """
    areas, boxes = superpixels.areas.double(), superpixels.boxes.double()
    if order == "area":
        return _by_area(superpixels, -areas).double()
    if order == "raster":
        centre = (boxes[:, :2] + boxes[:, 2:]) / 2
        return (centre[:, 1] * grid[0]).floor() + centre[:, 0]
    if order == "random":
        numbers = torch.cat([boxes, areas[:, None]], dim=1)
        key = torch.full_like(areas, seed, dtype=torch.long)
        for column in (numbers * (1 << 24)).round().long().T:
            key = (key ^ column) * 6364136223846793005 + 1442695040888963407
            key = key ^ ((key >> 33) & 0x7FFFFFFF)
        return (key & 0xFFFFFFFF).double()
    return torch.arange(len(areas), device=areas.device).double()


def sort_by(key: Tensor, lengths: Tensor) -> Tensor:
    """``[sum K_i]`` indices that sort each image's rows by ``key``, images staying in place."""
    by_key = torch.argsort(key, stable=True)
    image, _ = _places(lengths)
    return by_key[torch.argsort(image[by_key], stable=True)]


def with_background(superpixels: Superpixels, grid: tuple[int, int]) -> tuple[Superpixels, Tensor]:
    """Superpixels with one more an image for what none covers, and which rows those are.

    The added row comes last in its image, and only where at least one cell is more than half uncovered.
    Its pooling weights are its shares of the cells; its box spans them.

    Args:
        superpixels: ragged superpixels; those that do not say where they overlap are taken not to.
        grid: ``(h, w)``.

    Returns:
        The superpixels, and ``[sum K_i']`` bool that marks the added rows.
    """
    lengths, occupancy = superpixels.lengths, superpixels.occupancy
    total = occupancy.new_zeros(len(lengths), occupancy.shape[1]).index_add(
        0, superpixels.image_index, occupancy
    )
    # a cell that two masks share counts once
    covered = total if superpixels.excess is None else total - superpixels.excess
    rest = (1 - covered).clamp(min=0)
    added = torch.nonzero((rest > _COVERED).any(dim=1)).flatten()
    rest = rest[added]
    touched = (rest > _COVERED).unflatten(1, grid)
    boxes = (
        torch.stack([_span(touched.any(dim=1)), _span(touched.any(dim=2))], dim=2).flatten(1).to(rest.dtype)
    )
    owner = torch.cat([superpixels.image_index, added])
    rows = torch.argsort(owner, stable=True)
    longer = replace(
        superpixels,
        occupancy=torch.cat([occupancy, rest])[rows],
        weights=torch.cat([superpixels.weights, rest / rest.sum(dim=1, keepdim=True)])[rows],
        boxes=torch.cat([superpixels.boxes, boxes])[rows],
        areas=torch.cat([superpixels.areas, rest.mean(dim=1)])[rows],
        lengths=lengths.index_add(0, added, torch.ones_like(added)),
    )
    return longer, rows >= len(occupancy)


def _span(hit: Tensor) -> Tensor:
    """``[A, 2]``: first and one past the last true place of ``hit`` ``[A, m]``, as shares of ``m``."""
    m = hit.shape[1]
    first = hit.to(torch.uint8).argmax(dim=1)
    last = m - hit.flip(1).to(torch.uint8).argmax(dim=1)
    return torch.stack([first, last], dim=1) / m
