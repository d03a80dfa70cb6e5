"""Reads photographs as RGB arrays, in the pixel frame that COCO masks are drawn in."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

__all__ = ["read_rgb"]

_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


def read_rgb(path: Path | str, *, upright: bool = False) -> np.ndarray:
    """A uint8 ``[H, W, 3]`` array **in the stored pixel frame**.

    Grey is repeated over the channels, CMYK and palettes are converted, transparency is dropped, 16 bits are
    scaled to 8. EXIF orientation is not applied: COCO's and REFER's masks are drawn in the stored frame.

    Args:
        path: the photograph.
        upright: turn it as EXIF says after all, for one that nobody has annotated.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is truncated or no image.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"image {path} is missing; `svp data check` lists what is not there")
    try:
        with Image.open(path) as stored:
            image = ImageOps.exif_transpose(stored) if upright else stored
            if image.mode in _SIXTEEN_BIT:
                grey = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(grey[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image {path} is truncated or no image ({error}); fetch it again") from error
