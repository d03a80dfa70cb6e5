"""Ragged random features with overlapping masks, uncovered patches and a mask that vanishes on the grid."""

from dataclasses import replace

import torch

from harness.projector import ImageFeatures, Interface, Superpixels
from harness.superpixels.store import mask_geometry, on_grid

GRID, D, H = (6, 5), 16, 24
INTERFACE = Interface(vision_width=D, language_width=H, grid=GRID)


def rectangles(count, generator, height=48, width=40):
    """Masks ``[count, height, width]`` of random place and size."""
    masks = torch.zeros(count, height, width, dtype=torch.bool)
    for mask in masks:
        h, w = (int(torch.randint(7, side // 2, (), generator=generator)) for side in (height, width))
        y = int(torch.randint(0, height - h, (), generator=generator))
        x = int(torch.randint(0, width - w, (), generator=generator))
        mask[y : y + h, x : x + w] = True
    return masks


def superpixels_of(masks, grid=GRID):
    """Superpixels of one image from masks ``[K, H, W]``."""
    return on_grid([mask_geometry(masks.numpy(), grid)])


def join(images):
    """One ragged batch of single images."""
    fields = ("occupancy", "weights", "boxes", "areas", "lengths", "excess")
    sps = Superpixels(*(torch.cat([getattr(i.superpixels, f) for i in images]) for f in fields))
    return ImageFeatures(torch.cat([i.patches for i in images]), images[0].grid, superpixels=sps)


def single(count, seed, d=D, grid=GRID):
    generator = torch.Generator().manual_seed(seed)
    masks = rectangles(count, generator)
    if count > 1:  # covers a small corner of one cell only
        masks[-1] = False
        masks[-1, 9:12, 9:11] = True
    patches = torch.randn(1, grid[0] * grid[1], d, generator=generator)
    return ImageFeatures(patches, grid, superpixels=superpixels_of(masks, grid))


def take(superpixels, rows, lengths=None):
    """Rows of ``superpixels`` in another order or, with new ``lengths``, some of them."""
    picked = {f: getattr(superpixels, f)[rows] for f in ("occupancy", "weights", "boxes", "areas")}
    return replace(superpixels, **picked) if lengths is None else Superpixels(**picked, lengths=lengths)
