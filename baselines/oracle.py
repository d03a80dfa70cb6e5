"""Oracle: the single superpixel that fits best, chosen with the ground truth."""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from harness.plugins.controls import Control

__all__ = ["Oracle"]


class Oracle(Control):
    """The bound that one superpixel sets: no model, a perfect choice."""

    name: ClassVar[str] = "oracle"
    kind: ClassVar[str] = "control"
    acts_on: ClassVar[str] = "superpixels"
    needs: ClassVar[tuple[str, ...]] = ("superpixels",)
    reference: ClassVar[str] = "best single superpixel by IoU"

    def choose(self, masks: np.ndarray, target: np.ndarray) -> np.ndarray:
        """The mask of ``[K, H, W]`` with the highest IoU to ``target [H, W]``."""
        flat, wanted = masks.reshape(len(masks), -1).astype(bool), target.reshape(-1).astype(bool)
        overlap = (flat & wanted).sum(1)
        return masks[int(np.argmax(overlap / np.maximum((flat | wanted).sum(1), 1)))]
