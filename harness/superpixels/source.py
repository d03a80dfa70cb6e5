"""The superpixel source contract.

A source turns an image into binary masks that may overlap and need not cover it. Sources are found
in the packages registered under the entry point group ``svp.superpixel_sources``; like projectors
they declare themselves in literal class attributes (:mod:`harness.plugins.discovery`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from pydantic import BaseModel, ConfigDict

__all__ = ["SuperpixelConfig", "SuperpixelMasks", "SuperpixelSource", "device_of_choice", "open_sam"]


@dataclass(frozen=True)
class SuperpixelMasks:
    """The superpixels of one image at its own resolution.

    Attributes:
        masks: ``[K, H, W]`` bool; may overlap, need not cover the image, none empty.
        scores: ``[K]`` float32, the source's confidence, 1 where it has none.
        levels: ``[K]`` int8: 0 sub-part, 1 part, 2 whole, as SAM orders its three masks; 2 elsewhere.
    """

    masks: np.ndarray
    scores: np.ndarray
    levels: np.ndarray

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        if self.masks.ndim != 3 or self.masks.dtype != bool:
            raise ValueError(
                f"superpixel masks must be bool [K, H, W], not {self.masks.dtype} {self.masks.shape}"
            )
        if not len(self.masks) == len(self.scores) == len(self.levels):
            raise ValueError(
                f"{len(self.masks)} masks, {len(self.scores)} scores, {len(self.levels)} levels: not one each"
            )

    @classmethod
    def of(cls, masks: np.ndarray) -> SuperpixelMasks:
        """Masks of a source without scores and levels; empty masks are left out."""
        masks = masks[masks.any(axis=(1, 2))]
        return cls(masks, np.ones(len(masks), np.float32), np.full(len(masks), 2, np.int8))

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> SuperpixelMasks:
        """One mask for each value of a label map ``[H, W]``."""
        return cls.of(labels[None] == np.unique(labels)[:, None, None])


class SuperpixelConfig(BaseModel):
    """Base of every source's own options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SuperpixelSource:
    """Base of every superpixel source; subclasses set the class attributes as literals.

    Class attributes:
        name: the name used in config and manifests.
        reference: paper or repository of the algorithm.
        needs_sam: whether it is built with a SAM.
    """

    name: ClassVar[str]
    reference: ClassVar[str] = ""
    needs_sam: ClassVar[bool] = False

    class Config(SuperpixelConfig):
        """No options."""

    def __init__(self, config: SuperpixelConfig | None = None, sam: Any = None):
        """Keep the options and, where asked for, a ``segment_anything.modeling.Sam`` in eval mode.

        Raises:
            ValueError: the source needs a SAM and got none.
        """
        if self.needs_sam and sam is None:
            raise ValueError(f"superpixel source '{self.name}' needs a SAM; pass one")
        self.config: Any = config if config is not None else self.Config()
        self.sam = sam

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """The superpixels of one image.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            image_id: the image's id, for sources that look annotations up.
            sam_embedding: ``[C, h, w]`` cached SAM embedding of the whole image, on any device, for
                sources that use SAM.
        """
        raise NotImplementedError

    @property
    def images_at_once(self) -> int:
        """Images that :meth:`generate_all` is best handed together; 1 where it gains nothing."""
        return 1

    def generate_all(
        self,
        images: Sequence[np.ndarray],
        *,
        image_ids: Sequence[int | None] | None = None,
        sam_embeddings: Sequence[Any] | None = None,
    ) -> list[SuperpixelMasks]:
        """The superpixels of several images: of each what :meth:`generate` makes, up to rounding.

        Args:
            images: ``[H, W, 3]`` uint8 RGB each, of any sizes.
            image_ids: of each.
            sam_embeddings: ``[C, h, w]`` of each, or ``None`` for those to be encoded.
        """
        ids = image_ids if image_ids is not None else [None] * len(images)
        given = sam_embeddings if sam_embeddings is not None else [None] * len(images)
        return [
            self.generate(image, image_id=image_id, sam_embedding=embedding)
            for image, image_id, embedding in zip(images, ids, given, strict=True)
        ]


def device_of_choice(device: str | None = None) -> str:
    """The device named; where none is, the GPU if there is one, else the CPU (imports torch)."""
    import torch

    return device or ("cuda" if torch.cuda.is_available() else "cpu")


def open_sam(
    source: Path | str, kind: str = "tiny", sha256: str | None = None, *, device: str | None = None
) -> Any:
    """A ``segment_anything`` SAM in evaluation mode, for sources that need one (imports torch).

    Args:
        source: as :func:`harness.models.sam.load_sam` takes it, whose errors are this function's.
        kind: of the weights.
        sha256: expected digest of the checkpoint's bytes, if known.
        device: to run on; see :func:`device_of_choice`.
    """
    from harness.models.sam import load_sam

    return load_sam(source, kind, sha256).to(device_of_choice(device))
