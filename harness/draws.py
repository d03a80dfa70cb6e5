"""Random draws of measurements, seeded by names; free of torch, so that tables need none."""

from __future__ import annotations

import hashlib

import numpy as np

__all__ = ["generator_from_names"]


def generator_from_names(*names: object) -> np.random.Generator:
    """A generator seeded by the sha256 of the names: the same words, the same draws, anywhere."""
    text = "\x1f".join(map(str, names))
    return np.random.default_rng(int.from_bytes(hashlib.sha256(text.encode()).digest()[:16], "big"))
