"""The frozen encoders as one function of a photograph, rounded as the feature cache stores it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from harness.config import RunConfig
from harness.models.sam import load_sam, sam_input
from harness.models.vision import load_vision
from harness.plugins.discovery import load_projector
from harness.projector import EncoderHook

__all__ = ["ATTENTION_ITEMS", "ImageEncoder", "encoder_hook"]

# What the encoder must be asked for, as it costs more than the patches.
ATTENTION_ITEMS = frozenset({"cls_attention", "keys", "last_cls_attention", "last_keys"})


def encoder_hook(run: RunConfig) -> EncoderHook:
    """What a run's projector does inside the encoder.

    Raises:
        ValueError: its projector needs ``encoder_tokens`` and gives no hook.
    """
    projector = load_projector(run.source)
    hook = projector.encoder_hook(run.models.vision.grid, run.budget, projector.Config(**run.config))
    if hook is None:
        raise ValueError(f"{run.source} needs encoder_tokens and has no encoder_hook to make them")
    return hook


class ImageEncoder:
    """One item of one image at a time.

    One at a time, as sums are taken in another order in a batch of another size: only so are a cached
    feature and one encoded on the fly the same bits.
    """

    def __init__(self, item: str, run: RunConfig, model: Path | str):
        """Load the encoder.

        Args:
            item: one of :data:`harness.config.FEATURE_ITEMS`.
            run: a run that uses the item (for its model options, and its projector's hook).
            model: folder, checkpoint or name of the encoder.
        """
        self.item, self.options = item, run.models
        self.dtype: torch.dtype = getattr(torch, run.models.features.dtype)
        self._compute: torch.dtype = getattr(torch, run.models.features.compute)
        self._hook = encoder_hook(run) if item == "encoder_tokens" else None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if item == "sam":
            self._sam = load_sam(model, run.models.sam.kind, run.models.sam.sha256).to(self.device)
        else:
            self._vision = load_vision(run.models.vision, model).to(self.device)

    @torch.no_grad()
    def __call__(self, image: np.ndarray) -> Tensor:
        """The item of a uint8 RGB ``[H, W, 3]``, on the encoder's device in the cache's dtype.

        Raises:
            ValueError: the encoder does not give the item.
        """
        with torch.autocast(self.device.type, self._compute, enabled=self._compute != torch.float32):
            return self._encode(image)[0].to(self.dtype)

    def _encode(self, image: np.ndarray) -> Tensor:
        if self.item == "sam":
            return self._sam.image_encoder(sam_input(image, self._sam)[None])
        pixels = self._vision.preprocess(image)[None]
        if self._hook is not None:
            return self._vision.encoder_tokens(pixels, self._hook)
        out = self._vision(pixels, attention=self.item in ATTENTION_ITEMS)
        if self.item == "levels":
            value = torch.stack(out.levels, 1) if out.levels else None
        else:
            value = getattr(out, self.item)
        if value is None:
            raise ValueError(f"vision encoder '{self.options.vision.kind}' gives no {self.item}")
        return value
