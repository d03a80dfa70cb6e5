"""Image-blind: trained weights, the visual tokens of other images, SAM's decoder on the right one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np

from harness.draws import generator_from_names
from harness.plugins.controls import Control

__all__ = ["ImageBlind"]


class ImageBlind(Control):
    """The language model reads another image: what is left is SAM's decoder finding what the words name.

    A mask decoder that learns with the rest may find "the red cup on the left" by itself, in SAM's own image
    embedding. What a projector is worth is what its row scores above this control of it.
    """

    name: ClassVar[str] = "image_blind"
    kind: ClassVar[str] = "control"
    acts_on: ClassVar[str] = "run"
    reference: ClassVar[str] = (
        "Cirik, Morency, Berg-Kirkpatrick, NAACL 2018 (what referring expression models ignore)"
    )

    def read_instead(self, images: np.ndarray, seed: int) -> Mapping[int, int]:
        """Each image takes the tokens of another: a seeded rotation of a seeded order.

        Raises:
            ValueError: there is one image only.
        """
        ids = np.unique(images)
        if len(ids) < 2:
            raise ValueError("image_blind: all expressions are about one image; evaluate at least two")
        rng = generator_from_names("image_blind", seed)
        order = rng.permutation(ids)
        return dict(zip(order.tolist(), np.roll(order, 1).tolist(), strict=True))
