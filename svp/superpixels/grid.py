"""A regular grid of rectangles: the control that ignores the image."""

from __future__ import annotations

from typing import Any

import numpy as np
from pydantic import Field

from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource

__all__ = ["Grid"]


class Grid(SuperpixelSource):
    """``rows x columns`` rectangles that tile the image."""

    name = "grid"

    class Config(SuperpixelConfig):
        """Rectangles down and across; cells without a pixel (tiny images) are left out."""

        rows: int = Field(6, ge=1)
        columns: int = Field(6, ge=1)

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """A partition of the image; see the base class."""
        height, width = image.shape[:2]
        row = np.arange(height) * self.config.rows // height
        column = np.arange(width) * self.config.columns // width
        return SuperpixelMasks.of_labels(row[:, None] * self.config.columns + column[None])
