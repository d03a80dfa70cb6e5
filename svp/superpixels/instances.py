"""Annotated COCO instances as superpixels: an oracle that says what perfect masks would give."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource

__all__ = ["Instances"]


class Instances(SuperpixelSource):
    """The image's annotated objects, and one more mask for all that none of them covers."""

    name = "instances"
    reference = "COCO annotations (Lin et al., ECCV 2014); an upper bound, not a method"

    class Config(SuperpixelConfig):
        """Options of the oracle.

        Attributes:
            annotations: ``annotations.parquet`` of the prepared tables (``image_id``, ``ann_id``, ``rle``,
                sizes).
            rest: whether what no object covers forms a superpixel too.
        """

        annotations: Path
        rest: bool = True

    def __init__(self, config: SuperpixelConfig | None = None, sam: Any = None):
        """Read the annotations.

        Raises:
            ValueError: no annotation table is named, or it is not there.
        """
        if config is None:
            raise ValueError("superpixel source 'instances' needs 'annotations': annotations.parquet")
        super().__init__(config, sam)
        path = self.config.annotations
        if not path.is_file():
            raise ValueError(f"superpixel source 'instances': {path} is missing; run the prepare stage")
        table = pd.read_parquet(path, columns=["image_id", "ann_id", "height", "width", "rle"])
        # Made-up unions of objects (gRefCOCO) have negative ids: they are answers, not objects.
        objects = table[table["ann_id"] >= 0].drop(columns="ann_id")
        # the same object can stand in several datasets of one image
        self._by_image = dict(iter(objects.drop_duplicates().groupby("image_id")))

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """The objects of ``image_id``; see the base class.

        Raises:
            ValueError: no id was given, or an annotation has another size than the image.
        """
        if image_id is None:
            raise ValueError("superpixel source 'instances' looks masks up by image_id; none was given")
        size = image.shape[:2]
        masks = np.zeros((0, *size), bool)
        if image_id in self._by_image:
            rows = self._by_image[image_id]
            if {*zip(rows["height"], rows["width"], strict=True)} != {size}:
                raise ValueError(
                    f"{self.config.annotations}: annotations of image {image_id} do not have its size {size}"
                )
            codes = [{"size": list(size), "counts": r.encode()} for r in rows["rle"]]
            masks = np.ascontiguousarray(coco_mask.decode(codes).transpose(2, 0, 1)).astype(bool)
        rest = ~masks.any(axis=0)
        if self.config.rest and rest.any():
            masks = np.concatenate([masks, np.expand_dims(rest, 0)])
        return SuperpixelMasks.of(masks)
