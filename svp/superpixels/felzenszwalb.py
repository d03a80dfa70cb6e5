"""Felzenszwalb-Huttenlocher superpixels: a control whose count adapts to the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field
from skimage.segmentation import felzenszwalb

from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource

__all__ = ["Felzenszwalb"]


class Felzenszwalb(SuperpixelSource):
    """Graph-based merging (Felzenszwalb and Huttenlocher, IJCV 2004), through scikit-image."""

    name = "felzenszwalb"
    reference = "Felzenszwalb and Huttenlocher, Efficient graph-based image segmentation, IJCV 2004"

    class Config(SuperpixelConfig):
        """Options of the graph-based segmentation.

        Attributes:
            scale: the larger, the larger the segments.
            sigma: width of the Gaussian smoothing before, in pixels.
            min_size: smaller segments are merged afterwards, in pixels.
        """

        scale: float = Field(300.0, gt=0)
        sigma: float = Field(0.8, ge=0)
        min_size: int = Field(200, ge=0)

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """A partition of the image; see the base class."""
        labels = felzenszwalb(
            image,
            scale=self.config.scale,
            sigma=self.config.sigma,
            min_size=self.config.min_size,
            channel_axis=-1,
        )
        return SuperpixelMasks.of_labels(labels)
