"""SLIC superpixels: the classical, purely local control against SAM's semantic ones."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from skimage.segmentation import slic

from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource

__all__ = ["Slic"]


class Slic(SuperpixelSource):
    """k-means in colour and position (Achanta et al., TPAMI 2012), through scikit-image."""

    name = "slic"
    reference = "Achanta et al., SLIC superpixels compared to state-of-the-art methods, TPAMI 2012"

    class Config(SuperpixelConfig):
        """Options of SLIC.

        Attributes:
            segments: superpixels asked for; about 40 matches SVP on COCO photographs.
            compactness: weight of position against colour.
            sigma: width of the Gaussian smoothing before clustering, in pixels.
        """

        segments: int = Field(40, ge=1)
        compactness: float = 10.0
        sigma: float = 1.0

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """A partition of the image; see the base class."""
        labels = slic(
            image,
            n_segments=self.config.segments,
            compactness=self.config.compactness,
            sigma=self.config.sigma,
            start_label=0,
            channel_axis=-1,
        )
        return SuperpixelMasks.of_labels(labels)
