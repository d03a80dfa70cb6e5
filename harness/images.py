"""Reads photographs as RGB arrays, in the pixel frame that COCO masks are drawn in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

__all__ = ["read_rgb"]

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_rgb(path: Path | str) -> np.ndarray:
    """A uint8 ``[H, W, 3]`` array **in the stored pixel frame**.

    Grey is repeated over the channels, CMYK and palettes are converted, transparency is dropped, 16 bits are
    scaled to 8. EXIF orientation is not applied: COCO's and REFER's masks are drawn in the stored frame.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image {path} is missing; `svp data check` lists what is not there")
    try:
        with Image.open(path) as image:
            if image.mode in _SIXTEEN_BIT:
                grey = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image {path} is truncated or no image ({error}); fetch it again") from error
