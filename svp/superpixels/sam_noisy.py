"""SAM's superpixels made worse by a known amount: how much does SVP hang on their quality?"""

from __future__ import annotations

import numpy as np
from pydantic import Field

from harness.superpixels.source import SuperpixelMasks
from svp.superpixels.sam import SamSuperpixels

__all__ = ["NoisySam", "merge_masks", "split_masks"]


def merge_masks(masks: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Under-segmentation: ``round(share * K)`` times, a random mask is united with its nearest neighbour.

    Args:
        masks: ``[K, H, W]`` bool, none empty.
        share: in 0..1; one mask is always left.
        generator: draws which.

    Returns:
        ``[K - round(share * K), H, W]`` bool (at least one mask).
    """
    left = [*masks]
    for _ in range(min(round(share * len(masks)), len(masks) - 1)):
        drawn = int(generator.integers(len(left)))
        centres = np.array([np.argwhere(mask).mean(axis=0) for mask in left])
        distance = np.linalg.norm(centres - centres[drawn], axis=1)
        distance[drawn] = np.inf
        nearest = int(distance.argmin())
        left[nearest] = left[nearest] | left[drawn]
        del left[drawn]
    return np.array(left).reshape(-1, *masks.shape[1:])


def split_masks(masks: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Over-segmentation: ``round(share * K)`` random masks are cut in two halves across their longest axis.

    A mask of a single pixel stays whole.

    Args:
        masks: ``[K, H, W]`` bool, none empty.
        share: in 0..1.
        generator: draws which.

    Returns:
        ``[K', H, W]`` bool, untouched masks first.
    """
    drawn = set(generator.permutation(len(masks))[: round(share * len(masks))].tolist())
    result = [mask for i, mask in enumerate(masks) if i not in drawn]
    for i in sorted(drawn):
        places = np.argwhere(masks[i])
        centred = places - places.mean(axis=0)
        _, axes = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(centred @ axes[:, -1], kind="stable")
        for half in (order[: len(order) // 2], order[len(order) // 2 :]):
            part = np.zeros_like(masks[i])
            part[tuple(places[half].T)] = True
            result += [part] if part.any() else []
    return np.array(result).reshape(-1, *masks.shape[1:])


class NoisySam(SamSuperpixels):
    """:class:`svp.superpixels.sam.SamSuperpixels`, then merged and split; scores and levels are lost."""

    name = "sam_noisy"
    reference = "a control: SAM's superpixels with merge and split noise"
    needs_sam = True

    class Config(SamSuperpixels.Config):
        """As of ``sam``, and the noise.

        Attributes:
            merge: share of the superpixels merged into a neighbour, before splitting.
            split: share of the superpixels left that are cut in two.
            seed: with the image's id it fixes which.
        """

        merge: float = Field(0.0, ge=0, le=1)
        split: float = Field(0.0, ge=0, le=1)
        seed: int = Field(0, ge=0)

    def _finished(self, made: SuperpixelMasks, image_id: int | None) -> SuperpixelMasks:
        """Noise drawn by the image's id."""
        if not len(made.masks):
            return made
        generator = np.random.default_rng([self.config.seed, image_id or 0])
        masks = merge_masks(made.masks, self.config.merge, generator)
        return SuperpixelMasks.of(split_masks(masks, self.config.split, generator))
