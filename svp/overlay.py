"""Superpixels drawn over their image, to be looked at."""

from __future__ import annotations

import colorsys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from scipy import ndimage

from harness.images import read_rgb
from harness.segmentation import Reading
from harness.superpixels.source import SuperpixelMasks, SuperpixelSource
from svp.projector import SVP

__all__ = ["attention_overlay", "draw_attention", "draw_superpixels", "superpixel_overlay"]

_GOLDEN = 0.618033988749895  # steps of the hue by it keep neighbours apart
_PIXELS_A_LINE = 1200  # of the shorter side, for each pixel by which outlines widen
_SEAM = 0.5


def draw_superpixels(image: np.ndarray, masks: np.ndarray, opacity: float = 0.35) -> np.ndarray:
    """Each mask in a tint of its own, the smallest on top; what none covers stays as it is.

    Outlines are white within a dark seam, so that they show on any photograph; they widen with it.

    Args:
        image: ``[H, W, 3]`` uint8.
        masks: ``[K, H, W]`` bool.
        opacity: of the tints, in 0..1.

    Returns:
        ``[H, W, 3]`` uint8.
    """
    owner = np.full(image.shape[:2], -1)
    for i in np.argsort(-masks.sum(axis=(1, 2)), kind="stable"):
        owner[masks[i]] = i
    hues = [(i * _GOLDEN) % 1 for i in range(len(masks))]
    colours = np.array([colorsys.hsv_to_rgb(hue, 0.75, 1.0) for hue in hues] or [(0, 0, 0)]) * 255
    painted = (1 - opacity) * image + opacity * colours[owner]
    result = np.where(owner[..., None] >= 0, painted, image)
    edge = np.zeros(image.shape[:2], bool)
    edge[:, 1:] |= owner[:, 1:] != owner[:, :-1]
    edge[1:] |= owner[1:] != owner[:-1]
    width = round(min(image.shape[:2]) / _PIXELS_A_LINE)
    line = ndimage.binary_dilation(edge, iterations=width) if width else edge
    result[ndimage.binary_dilation(line) & ~line] *= _SEAM
    result[line] = 255
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def draw_attention(
    image: np.ndarray, weights: np.ndarray, grid: tuple[int, int], mask: np.ndarray | None = None
) -> np.ndarray:
    """Where one superpixel looks: the photograph lit by its attention, the superpixel outlined in white.

    Args:
        image: ``[H, W, 3]`` uint8.
        weights: ``[n]`` attention over the patches (:meth:`svp.projector.SVP.attention_maps`, mean of heads).
        grid: ``(h, w)`` of the patches, in raster order.
        mask: ``[H, W]`` bool, the superpixel.

    Returns:
        ``[H, W, 3]`` uint8; the patch looked at most stands in full light, one never looked at in a fifth.
    """
    size = (image.shape[1], image.shape[0])
    lit = (weights / max(float(weights.max()), 1e-12)).reshape(grid).astype(np.float32)
    light = np.asarray(Image.fromarray(lit).resize(size, Image.Resampling.BILINEAR))
    result = image * (0.2 + 0.8 * light[..., None])
    if mask is not None:
        result[mask & ~ndimage.binary_erosion(mask)] = 255
    return np.clip(np.rint(result), 0, 255).astype(np.uint8)


def attention_overlay(image: np.ndarray, seen: Reading, projector: SVP, most: int) -> np.ndarray:
    """The largest superpixels of a photograph side by side, each lit by where the SSA looks for it.

    Args:
        image: ``[H, W, 3]`` uint8.
        seen: what the row sees of it (:meth:`harness.segmentation.Segmenter.read`).
        projector: a trained SVP.
        most: superpixels to draw.

    Returns:
        ``[h, W', 3]`` uint8, a picture of the superpixels' size for each.

    Raises:
        ValueError: the projector has no SSA, or the row no superpixels.
    """
    if seen.superpixels is None:
        raise ValueError("attention is drawn for superpixels; this row reads patches")
    with torch.no_grad():
        weights = projector.attention_maps(seen.features).mean(dim=1).cpu().numpy()
    masks = seen.superpixels.masks
    height, width = masks.shape[1:]
    small = np.array(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
    largest = np.argsort(-masks.sum(axis=(1, 2)), kind="stable")[:most]
    parts = [draw_attention(small, weights[k], seen.features.grid, masks[k]) for k in largest]
    return np.concatenate(parts, axis=1)


def superpixel_overlay(
    image_path: Path | str, source: SuperpixelSource, out_path: Path | str, *, image_id: int | None = None
) -> dict[str, float | int | str]:
    """Write the superpixels of one photograph over it, as a PNG.

    Args:
        image_path: any image file that Pillow reads.
        source: the superpixel source.
        out_path: of the PNG.
        image_id: for sources that look annotations up.

    Returns:
        ``source``, ``count``, ``coverage`` (share of pixels in any), ``overlap`` (share of the covered
        pixels in two or more) and ``out``.
    """
    # In the stored frame where a source looks annotations up; nobody has annotated the others.
    image = read_rgb(image_path, upright=image_id is None)
    made: SuperpixelMasks = source.generate(image, image_id=image_id)
    layers = made.masks.sum(axis=0, dtype=np.int32)
    covered = int((layers > 0).sum())
    out_path = Path(out_path)
    out_path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(draw_superpixels(image, made.masks)).save(out_path, format="PNG")
    return {
        "source": source.name,
        "count": len(made.masks),
        "coverage": covered / layers.size,
        "overlap": float((layers > 1).sum()) / max(covered, 1),
        "out": str(out_path),
    }
