"""Run-length codes of masks: checked before C code reads them, compared without being decoded."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

__all__ = ["overlap", "run_lengths", "without"]


def run_lengths(counts: str, height: int, width: int) -> NDArray[np.int64]:
    """Run lengths of a COCO compressed RLE, checked.

    A damaged code can send pycocotools out of bounds, so it is read here first. The format: each
    number in base 32, least significant digit first, a digit ``d`` stored as ``chr(48 + d)`` with
    bit 5 set where more follow, the last digit's bit 4 the sign; from the fourth number on, the
    difference to the one two before.

    Args:
        counts: the compressed counts.
        height: pixels.
        width: pixels.

    Returns:
        Lengths ``[r]`` of alternating background and foreground runs in column order.

    Raises:
        ValueError: it does not describe exactly ``height * width`` pixels.
    """
    if not counts or not counts.isascii():
        raise ValueError("is not a run-length code")
    digits = np.frombuffer(counts.encode(), np.uint8).astype(np.int64) - 48
    more = (digits & 0x20) != 0
    if digits.min() < 0 or digits.max() > 63 or more[-1]:
        raise ValueError("is not a run-length code")
    ends = np.flatnonzero(~more)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 7:
        raise ValueError("holds a run longer than any image")
    place = np.arange(len(digits)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((digits & 0x1F) << (5 * place), starts)
    values -= np.where(digits[ends] & 0x10, np.int64(1) << (5 * (ends - starts + 1)), 0)
    runs = values.copy()
    runs[1::2] = np.cumsum(values[1::2])
    runs[2::2] = np.cumsum(values[2::2])
    if runs.min() < 0 or runs.sum() != height * width:
        raise ValueError(f"describes {runs.sum()} pixels, not {height}x{width}")
    return runs


def overlap(prediction: str | None, truth: str, height: int, width: int, row: str) -> tuple[int, int, int]:
    """Intersection and areas of two masks, in pixels.

    Args:
        prediction: compressed counts; ``None`` is an empty mask.
        truth: compressed counts.
        height: pixels, of both.
        width: pixels, of both.
        row: what errors call the pair.

    Returns:
        ``(intersection, truth's area, prediction's area)``.

    Raises:
        ValueError: a code is damaged.
    """
    codes: list[dict] = []
    areas: list[int] = []
    for what, counts in (("ground truth", truth), ("prediction", prediction)):
        if counts is None:
            return 0, areas[0], 0
        try:
            runs = run_lengths(counts, height, width)
        except ValueError as error:
            raise ValueError(f"{row}: the mask of the {what} {error}; predict or prepare it again") from error
        codes.append({"size": [height, width], "counts": counts.encode()})
        areas.append(int(runs[1::2].sum()))
    return int(coco_mask.area(coco_mask.merge(codes, intersect=True))), areas[0], areas[1]


def without(counts: str, removed: str, height: int, width: int, row: str) -> str:
    """A mask less the pixels of another, as compressed counts.

    Args:
        counts: compressed counts.
        removed: compressed counts of the pixels to take away.
        height: pixels, of both.
        width: pixels, of both.
        row: what errors call the pair.

    Raises:
        ValueError: a code is damaged.
    """
    try:
        run_lengths(counts, height, width)
        runs = run_lengths(removed, height, width)
    except ValueError as error:
        raise ValueError(f"{row}: a mask {error}; predict or prepare it again") from error
    # Starting with an empty run of background turns every run into its opposite.
    opposite = {"size": [height, width], "counts": [0, *runs.tolist()]}
    kept = coco_mask.frPyObjects(opposite, height, width)
    code = {"size": [height, width], "counts": counts.encode()}
    return coco_mask.merge([code, kept], intersect=True)["counts"].decode()
