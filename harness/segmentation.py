"""A finished row on a photograph of any origin: from pixels and words to masks, nothing cached."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from harness.config import RunConfig
from harness.features.encoding import ImageEncoder
from harness.models.ris import RISModel
from harness.planning.plan import Plan
from harness.prediction import predict_masks
from harness.projector import ImageFeatures, Projector
from harness.reporting.overlays import Example, overlay_figure
from harness.superpixels.source import SuperpixelMasks
from harness.superpixels.stage import build_source
from harness.superpixels.store import mask_geometry, on_grid, stood_in
from harness.training.assembly import finished_model, image_features

__all__ = ["Reading", "Segmentation", "Segmenter", "draw"]

# SAM's own resolution. A telephone's photograph has sixteen times the pixels, in the mask of each candidate.
_LONGEST = 1024


@dataclass(frozen=True)
class Segmentation:
    """What a row answers about one image.

    Attributes:
        masks: ``[m, H, W]`` bool, one an expression.
        emitted: whether ``[SEG]`` was said, of each; always under a forced answer.
        visual_tokens: that the language model read for each expression.
        superpixels: ``[K, H, W]`` bool that the tokens come from; ``None`` where they come from patches.
    """

    masks: np.ndarray
    emitted: list[bool]
    visual_tokens: list[int]
    superpixels: np.ndarray | None


@dataclass(frozen=True)
class Reading:
    """What a row sees of one image.

    Attributes:
        features: what its projector reads.
        sam: ``[1, C, h, w]`` SAM's embedding.
        superpixels: masks ``[K, H, W]`` at the image's size, at most ``_LONGEST`` pixels a side; ``None``
            where its tokens come from patches.
    """

    features: ImageFeatures
    sam: Tensor
    superpixels: SuperpixelMasks | None


class Segmenter:
    """A trained row of a study with its encoders and its superpixel source, loaded once."""

    def __init__(self, plan: Plan, run: RunConfig):
        """From the study's finished run.

        Raises:
            ValueError: the run is a control, or has not been trained.
        """
        if run.acts_on != "training":
            raise ValueError(f"{run.id} is a control that is not trained; name a trained row")
        weights = plan.weights(run.id)
        if not weights.is_file():
            raise ValueError(f"{run.id} is not trained: {weights} is not there; run the study first")
        self.plan, self.run = plan, run
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self._encoders = {
            item: ImageEncoder(item, run, plan.model_source(run, "sam" if item == "sam" else "vision"))
            for item in plan.keys(run).feature_items
        }
        self._source = build_source(plan, run) if run.superpixels is not None else None

    @cached_property
    def _model(self) -> RISModel:
        blank = np.zeros((8, 8, 3), np.uint8)
        width = self._encoders["patches"](blank).shape[-1]
        return finished_model(self.plan, self.run, width, self.device)

    def __call__(self, image: np.ndarray, expressions: Sequence[str]) -> Segmentation:
        """Masks of ``expressions`` in a uint8 RGB image ``[H, W, 3]``.

        Raises:
            ValueError: there is no expression, or one has no token.
        """
        if not expressions:
            raise ValueError("there is no expression to segment")
        seen = self.read(image)
        masks, tokens, emitted = predict_masks(
            self._model,
            seen.features,
            seen.sam,
            [list(expressions)],
            [(image.shape[0], image.shape[1])],
            self.run.protocol,
        )
        made = seen.superpixels
        drawn = None if made is None else _stretched(made.masks, image.shape[0], image.shape[1])
        return Segmentation(masks[0], emitted, tokens, drawn)

    @property
    def projector(self) -> Projector:
        """The trained one, ready to answer."""
        return self._model.projector

    def read(self, image: np.ndarray) -> Reading:
        """What the row sees of a uint8 RGB image ``[H, W, 3]``."""
        read = {item: encode(image)[None].float() for item, encode in self._encoders.items()}
        made, grid = self._superpixels(_shrunk(image), read["sam"][0]), self.run.models.vision.grid
        pixels = None if made is None else on_grid([mask_geometry(made.masks, grid)]).to(self.device)
        return Reading(image_features(read, grid, pixels), read["sam"], made)

    def _superpixels(self, image: np.ndarray, embedding: Tensor) -> SuperpixelMasks | None:
        if self._source is None:
            return None
        given = embedding.cpu() if self._source.needs_sam else None
        return stood_in(self._source.generate(image, sam_embedding=given))


def _shrunk(image: np.ndarray) -> np.ndarray:
    """The image with at most ``_LONGEST`` pixels a side."""
    height, width = image.shape[:2]
    share = _LONGEST / max(height, width)
    if share >= 1:
        return image
    size = max(1, round(share * width)), max(1, round(share * height))
    return np.array(Image.fromarray(image).resize(size, Image.Resampling.BILINEAR))


def _stretched(masks: np.ndarray, height: int, width: int) -> np.ndarray:
    """Masks ``[K, h, w]`` at ``[K, height, width]``, each pixel from the nearest."""
    _, h, w = masks.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    return masks[:, rows[:, None], columns]


def draw(image: np.ndarray, expressions: Sequence[str], found: Segmentation, out: Path) -> list[Path]:
    """The image, its superpixels if any, and a mask an expression, as ``out`` (PNG) and a PDF beside it."""
    named = {f"“{text}”": mask for text, mask in zip(expressions, found.masks, strict=True)}
    paths = [out.with_suffix(".png"), out.with_suffix(".pdf")]
    overlay_figure([Example(image, "", None, named, found.superpixels)], *paths)
    return paths
