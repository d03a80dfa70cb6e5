"""The option that gives a wanted mean number of superpixels (SVP reports about 40 on COCO photographs)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from harness.superpixels.source import SuperpixelSource

__all__ = ["Calibration", "calibrate"]


@dataclass(frozen=True)
class Calibration:
    """What a calibration found.

    Attributes:
        value: of the option, the nearest to the wanted mean among those tried.
        mean_count: superpixels an image at ``value``.
        counts: of each image at ``value``.
        tried: every value tried and its mean count, in the order tried.
        reached: whether the mean is within the tolerance.
    """

    value: float
    mean_count: float
    counts: tuple[int, ...]
    tried: tuple[tuple[float, float], ...]
    reached: bool


def calibrate(
    build: Callable[[float], SuperpixelSource],
    images: Sequence[np.ndarray],
    wanted: float,
    *,
    low: float,
    high: float,
    tolerance: float = 0.05,
    steps: int = 12,
    embeddings: Sequence[object] | None = None,
) -> Calibration:
    """Bisect one option between ``low`` and ``high``, as if the mean count rose or fell steadily with it.

    Args:
        build: from the option's value to a source (it may round, for whole numbers).
        images: ``[H, W, 3]`` uint8 each.
        wanted: mean number of superpixels.
        low: one end; whether counts rise or fall from it is seen from the two ends.
        high: the other.
        tolerance: share of ``wanted`` that is near enough.
        steps: values tried between the ends at most.
        embeddings: cached SAM embeddings of the images, so that each is encoded once.

    Raises:
        ValueError: there are no images, or ``wanted`` is not positive.
    """
    if not images or wanted <= 0:
        raise ValueError(f"calibration needs images and a positive count, got {len(images)} and {wanted}")
    given = embeddings if embeddings is not None else [None] * len(images)
    tried: dict[float, tuple[int, ...]] = {}

    def mean(value: float) -> float:
        if value not in tried:
            source = build(value)
            pairs = zip(images, given, strict=True)
            tried[value] = tuple(len(source.generate(i, sam_embedding=e).masks) for i, e in pairs)
        return float(np.mean(tried[value]))

    rising = mean(low) <= mean(high)
    for _ in range(steps):
        if min(abs(mean(v) - wanted) for v in tried) <= tolerance * wanted:
            break
        middle = (low + high) / 2
        if (mean(middle) < wanted) == rising:
            low = middle
        else:
            high = middle
    value = min(tried, key=lambda v: abs(mean(v) - wanted))
    return Calibration(
        value,
        mean(value),
        tried[value],
        tuple((v, mean(v)) for v in tried),
        abs(mean(value) - wanted) <= tolerance * wanted,
    )
