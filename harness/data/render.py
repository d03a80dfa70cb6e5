"""Turns a composed scene into pixels: textured background, patterned objects, small details, grain."""

from __future__ import annotations

import colorsys

import numpy as np
from PIL import Image

from harness.data.scenes import DETAILS, Placed

__all__ = ["part_masks", "render"]

_PALETTES = {
    "shapes": {
        "red": (208, 48, 44), "yellow": (238, 208, 48), "green": (46, 150, 62), "blue": (48, 84, 205),
        "purple": (148, 62, 172), "white": (242, 242, 240), "black": (26, 26, 30),
    },
    "blobs": {
        "red": (178, 78, 84), "yellow": (206, 186, 92), "green": (92, 146, 96), "blue": (82, 112, 172),
        "purple": (134, 88, 146), "white": (216, 212, 204), "black": (58, 54, 58),
    },
}  # fmt: skip
# A category's part is of its own stuff, whatever the object's color: trunks are brown, heads of skin.
_STUFF = {
    "person": (240, 190, 150), "cat": (255, 130, 180), "bird": (0, 215, 225), "fish": (170, 240, 70),
    "bug": (235, 50, 170), "cup": (250, 238, 208), "plate": (195, 175, 250), "box": (135, 138, 142),
    "star": (0, 140, 140), "ring": (110, 150, 255), "tree": (125, 75, 40), "bottle": (150, 30, 60),
}  # fmt: skip
_ORANGE = np.array([250, 132, 28])
_LEAST_PART = 4


def render(placed: list[Placed], size: int, domain: str, rng: np.random.Generator) -> np.ndarray:
    """Paint a scene.

    Args:
        placed: drawn objects, back to front.
        size: side of the image, pixels.
        domain: ``shapes`` or ``blobs``.
        rng: source of randomness for textures and grain.

    Returns:
        ``[size, size, 3]`` uint8.
    """
    canvas = _background(size, domain, rng)
    for item in placed:
        window = item.window
        alpha = item.raster.alpha[..., None]
        canvas[window] = canvas[window] * (1 - alpha) + _surface(item, size, domain, rng) * alpha
    grain = 4.0 if domain == "shapes" else 8.0
    canvas += rng.normal(0, grain, canvas.shape)
    return np.clip(np.round(canvas), 0, 255).astype(np.uint8)


def part_masks(placed: list[Placed], visible: np.ndarray) -> list[tuple[int, str, np.ndarray]]:
    """The visible pixels of each detail.

    Args:
        placed: drawn objects.
        visible: their visible masks ``[n, H, W]`` bool.

    Returns:
        ``(index of the object, name of the part, [H, W] bool)``; parts of less than four pixels are left out.
    """
    found = []
    for index, (item, mask) in enumerate(zip(placed, visible, strict=True)):
        for name, cover in item.raster.layers.items():
            part = np.zeros_like(mask)
            part[item.window] = cover >= 0.5
            part &= mask
            if part.sum() >= _LEAST_PART:
                found.append((index, name, part))
    return found


def _surface(item: Placed, size: int, domain: str, rng: np.random.Generator) -> np.ndarray:
    """``[h, w, 3]``: color, pattern, details and a darker contour."""
    base = np.array(_PALETTES[domain][item.looks["color"]], dtype=np.float32)
    base = np.clip(base + rng.normal(0, 6, 3), 0, 255)
    dark = float(base @ [0.299, 0.587, 0.114]) < 120
    # Black and white keep a milder second tone, else "checked black" and "checked white" look alike.
    grey = item.looks["color"] in ("black", "white")
    tone = base + (0.35 if grey else 0.55) * (255 - base) if dark else base * (0.62 if grey else 0.42)
    h, w = item.raster.alpha.shape
    mark = _pattern(item.looks["pattern"], h, w, size / 96, rng)[..., None]
    paint = base * (1 - mark) + tone * mark
    for name, cover in item.raster.layers.items():
        ink = _ORANGE if name in DETAILS else np.array(_STUFF[item.looks["category"]])
        paint = paint * (1 - cover[..., None]) + ink * cover[..., None]
    return paint * (1 - 0.4 * _contour(item.raster.alpha))[..., None]


def _contour(alpha: np.ndarray) -> np.ndarray:
    padded = np.pad(alpha, 1)
    inner = np.minimum.reduce([padded[:-2, 1:-1], padded[2:, 1:-1], padded[1:-1, :-2], padded[1:-1, 2:]])
    return np.clip(alpha - inner, 0, 1)


def _pattern(name: str, h: int, w: int, unit: float, rng: np.random.Generator) -> np.ndarray:
    """``[h, w]`` in 0..1: where the second tone goes; ``unit`` is a pixel of a 96-pixel image."""
    y, x = np.mgrid[:h, :w] + rng.uniform(0, 8 * unit, 2)[:, None, None]
    if name == "striped":
        turn = rng.choice([0, 1, 2, 3]) * np.pi / 4
        return (((x * np.cos(turn) + y * np.sin(turn)) / (5 * unit)) % 1 < 0.45).astype(np.float32)
    if name == "spotted":
        row = np.floor(y / (5 * unit))
        dx, dy = (x + row % 2 * 2.5 * unit) % (5 * unit) - 2.5 * unit, y % (5 * unit) - 2.5 * unit
        return (dx**2 + dy**2 < (1.6 * unit) ** 2).astype(np.float32)
    if name == "checked":
        return ((np.floor(x / (3.5 * unit)) + np.floor(y / (3.5 * unit))) % 2).astype(np.float32)
    return np.zeros((h, w), dtype=np.float32)


def _background(size: int, domain: str, rng: np.random.Generator) -> np.ndarray:
    """``[size, size, 3]`` float: two dull tones mixed by a texture."""
    saturation, spread = ((0.08, 0.28), 38.0) if domain == "shapes" else ((0.2, 0.45), 60.0)
    hue = rng.random()
    first, second = (
        np.array(colorsys.hsv_to_rgb((hue + turn) % 1, rng.uniform(*saturation), rng.uniform(0.42, 0.72)))
        * 255
        for turn in (0.0, rng.uniform(-0.15, 0.15))
    )
    second = first + np.clip(second - first, -spread, spread)
    y, x = np.mgrid[:size, :size] / size
    turn, kind = rng.uniform(0, 2 * np.pi), rng.choice(["smooth", "gradient", "stripes", "cells"])
    along = x * np.cos(turn) + y * np.sin(turn)
    if domain == "blobs" or kind == "smooth":
        mix = _smooth_noise(size, int(rng.integers(4, 9)), rng)
    elif kind == "gradient":
        mix = (along - along.min()) / np.ptp(along)
    elif kind == "stripes":
        mix = 0.5 + 0.5 * np.sin(along * 2 * np.pi * rng.uniform(3, 7))
    else:
        mix = np.kron(rng.random((8, 8)), np.ones((-(-size // 8), -(-size // 8))))[:size, :size]
    mix = np.clip(mix + 0.25 * (_smooth_noise(size, 16, rng) - 0.5), 0, 1)[..., None]
    return (first * (1 - mix) + second * mix).astype(np.float32)


def _smooth_noise(size: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    coarse = Image.fromarray(rng.random((cells, cells)).astype(np.float32))
    return np.clip(np.asarray(coarse.resize((size, size), Image.Resampling.BICUBIC)), 0, 1)
