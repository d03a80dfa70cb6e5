"""Puts a run's model and data together from the files that earlier stages wrote."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from torch.nn import functional as F

from harness.config import RunConfig
from harness.data.tables import load_tables
from harness.features.cache import open_features
from harness.models.captions import Captioner
from harness.models.language import Template, load_language
from harness.models.ris import RISModel
from harness.models.sam import NoEncoder, load_sam, sam_frame
from harness.models.starting import load_start
from harness.planning.plan import Plan
from harness.plugins.discovery import load_projector
from harness.projector import ImageFeatures, Interface, Superpixels
from harness.seeds import forked_rng
from harness.superpixels.store import SuperpixelStore
from harness.tensors import load_tensors

__all__ = ["RunData", "build_model", "finished_model", "image_features", "load_stage"]


def build_model(plan: Plan, run: RunConfig, vision_width: int) -> RISModel:
    """The run's model with fresh trained parts; the shared ones start alike for every projector.

    Args:
        plan: the study.
        run: what is built.
        vision_width: ``d`` of the patch embeddings that it will see.

    Raises:
        ValueError: the projector cannot be built so; the message says why.
    """
    dtype = getattr(torch, run.training.dtype)
    language, tokenizer = load_language(run.models.language, plan.model_source(run, "language"), dtype)
    sam = load_sam(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256)
    sam.image_encoder = NoEncoder(sam.image_encoder.img_size)
    projector_class = load_projector(run.source)
    interface = Interface(
        vision_width=vision_width,
        language_width=language.config.hidden_size,
        grid=run.models.vision.grid,
        budget=run.budget,
        level_count=len(run.models.vision.levels),
    )
    config = projector_class.Config(**run.config)
    skipped, reason = projector_class.skip(interface, config)
    if skipped:
        raise ValueError(f"{run.id} cannot be run: {reason}")
    with forked_rng("projector", run.projector, run.seed):
        projector = projector_class(interface, config)
        if (published := plan.projector_source(run)) is not None:
            projector.start_from(published)
    with forked_rng("model", run.seed):
        template = Template.parse(run.protocol, tokenizer)
        model = RISModel(projector, language, template, sam, run.models.language)
    if (start := plan.start_file(run)) is not None:
        load_start(model, start, projector=run.models.start_projector)
    return model


def load_stage(model: RISModel, path: Path) -> None:
    """Load a stage file.

    Raises:
        ValueError: it is cut short, or of another run.
    """
    model.load_trained(load_tensors(path, "delete it and train again"), str(path))


def finished_model(plan: Plan, run: RunConfig, vision_width: int, device: torch.device | str) -> RISModel:
    """The trained model of a run, on ``device`` and ready to answer.

    Raises:
        ValueError: its weights are cut short, or of another run.
    """
    model = build_model(plan, run, vision_width).to(device).eval()
    load_stage(model, plan.weights(run.id))
    model.projector.stage = 2
    model.merge_lora()
    return model


def image_features(
    read: dict[str, Tensor], grid: tuple[int, int], superpixels: Superpixels | None
) -> ImageFeatures:
    """What a projector sees, of the arrays of ``b`` images by item, SAM's embeddings left out."""
    own = {item: value for item, value in read.items() if item not in ("sam", "levels")}
    levels = read["levels"].unbind(1) if "levels" in read else ()
    return ImageFeatures(
        grid=grid,
        levels=tuple(levels),
        superpixels=superpixels,
        **own,  # type: ignore[arg-type]
    )


def _in_frame(counts: str, height: int, width: int, h: int, w: int) -> Tensor:
    """``[h, w]`` share of each cell that a mask of ``[height, width]`` covers."""
    mask = torch.from_numpy(coco_mask.decode({"size": [height, width], "counts": counts.encode()}))
    if (h, w) == (height, width):
        return mask
    return F.adaptive_avg_pool2d(mask[None].float(), (h, w))[0]


class RunData:
    """Expressions, masks, frozen features and superpixels of a run, by image id.

    Attributes:
        expressions: the prepared expressions.
        annotations: the prepared annotations, indexed by (dataset, ann_id).
    """

    def __init__(self, plan: Plan, run: RunConfig):
        """Open what the run reads; nothing large is loaded."""
        tables = load_tables(plan.prepared_dir(run))
        self.tables = tables
        self._captioner: Captioner | None = None
        self.expressions: pd.DataFrame = tables.expressions
        self.annotations = tables.annotations.set_index(["dataset", "ann_id"])
        self._rle = dict(zip(self.annotations.index, self.annotations["rle"], strict=True))
        ignored = self.annotations.get("rle_ignored", pd.Series(dtype=str)).fillna("")
        self._ignored = {key: rle for key, rle in ignored.items() if rle}
        sizes = self.annotations[["height", "width"]].to_numpy().tolist()
        self._mask_size = dict(zip(self.annotations.index, sizes, strict=True))
        self._size = {
            image_id: (int(h), int(w))
            for image_id, h, w in tables.images[["image_id", "height", "width"]].itertuples(index=False)
        }
        self.grid = run.models.vision.grid
        self.arrays = {
            item: open_features(
                plan.feature_dir(plan.keys(run).feature(item)),
                item,
                run,
                partial(plan.model_source, run, "sam" if item == "sam" else "vision"),
                tables,
            )
            for item in (plan.keys(run).feature_items if run.acts_on != "superpixels" else ())
        }
        key = plan.keys(run).superpixels
        self.superpixels = SuperpixelStore(plan.superpixel_dir(key)) if key else None

    @property
    def vision_width(self) -> int:
        """``d``."""
        return self.arrays["patches"].width

    def size(self, image_id: int) -> tuple[int, int]:
        """``(height, width)`` of an image."""
        return self._size[image_id]

    def features(self, image_ids: list[int], device: torch.device | str = "cpu") -> ImageFeatures:
        """What the projector sees of the images."""
        read = {k: v.batch(image_ids, device) for k, v in self.arrays.items() if k != "sam"}
        pixels = self.superpixels.batch(image_ids).to(device) if self.superpixels is not None else None
        return image_features(read, self.grid, pixels)

    def sam_embeddings(self, image_ids: list[int], device: torch.device | str = "cpu") -> Tensor:
        """``[b, C, h, w]`` frozen SAM image embeddings."""
        return self.arrays["sam"].batch(image_ids, device)

    def mask(self, dataset: str, ann_id: int) -> np.ndarray:
        """uint8 ``[H, W]`` ground truth of an annotation."""
        height, width = self._mask_size[(dataset, ann_id)]
        counts = self._rle[(dataset, ann_id)].encode()
        return coco_mask.decode({"size": [height, width], "counts": counts})

    def captions(self, tokenizer: Any) -> Captioner:
        """Captions of the annotations, in the ids of ``tokenizer``."""
        if self._captioner is None:
            self._captioner = Captioner(self.tables.annotations, tokenizer)
        return self._captioner

    def targets(self, rows: pd.DataFrame, image_size: int) -> tuple[Tensor, Tensor | None]:
        """Ground truth of expressions in SAM's padded square frame.

        Returns:
            ``[m, S, S]`` float in 0..1, and ``[m, S, S]`` bool that is false on padding and wherever a pixel
            stands in that the dataset does not score (``None`` where the batch has neither).
        """
        target = torch.zeros(len(rows), image_size, image_size)
        valid = torch.ones(len(rows), image_size, image_size, dtype=torch.bool)
        partly = False
        for i, (dataset, ann_id, image_id) in enumerate(
            rows[["dataset", "ann_id", "image_id"]].itertuples(index=False)
        ):
            height, width = self._size[image_id]
            h, w = sam_frame(height, width, image_size)
            target[i, :h, :w] = _in_frame(self._rle[(dataset, ann_id)], height, width, h, w)
            if (h, w) != (image_size, image_size):
                partly = True
                valid[i, h:] = False
                valid[i, :, w:] = False
            if (unscored := self._ignored.get((dataset, ann_id))) is not None:
                partly = True
                valid[i, :h, :w] &= _in_frame(unscored, height, width, h, w) == 0
        return target, valid if partly else None
