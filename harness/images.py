"""Reads photographs as RGB arrays, in the pixel frame that COCO masks are drawn in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

__all__ = ["read_rgb"]


def read_rgb(path: Path | str) -> np.ndarray:
    """A uint8 ``[H, W, 3]`` array; grey and CMYK become RGB.

    EXIF orientation is not applied: COCO's masks are drawn on the stored pixels.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image {path} is missing; `svp data check` lists what is not there")
    try:
        with Image.open(path) as image:
            return np.asarray(image.convert("RGB"))
    except (UnidentifiedImageError, OSError) as error:
        raise ValueError(f"image {path} is truncated or no image ({error}); fetch it again") from error
