"""Semantic superpixels: SAM in segment-everything mode and the selection of FMA-WSSS (arXiv 2312.03585).

So summaries of SVP (arXiv 2509.13676) tell it; the paper's text could not be read, and its own thresholds are
not known: the preset ``svp`` infers them.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes, is_box_near_crop_edge
from torch import Tensor
from torch.nn import functional as F

from harness.models.sam import sam_frame, sam_input
from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource
from svp.superpixels import selection
from svp.superpixels.adaptive import adaptive_candidates
from svp.superpixels.presets import PRESETS, PresetName, Settings, Triple
from svp.superpixels.prompting import Candidates, exact_candidates, full_resolution, official_candidates

__all__ = ["SamSuperpixels"]

_ENGINES = {"official": official_candidates, "exact": exact_candidates}


class SamSuperpixels(SuperpixelSource):
    """SAM's masks for a grid of points, reduced to quasi-superpixels.

    For each crop: prompts -> three candidates each (levels) -> quality gate -> stability -> box
    suppression that prefers whole objects; then suppression between crops, clean-up of small regions
    with another suppression, and the rock-sand-water filter.

    Attributes:
        settings: the numbers in force.
        prompts_asked: prompts decoded so far, over all images.
    """

    name = "sam"
    reference = "arXiv 2312.03585 (FMA-WSSS); github.com/HAL-42/FMA-WSSS; SAM: arXiv 2304.02643"
    needs_sam = True

    class Config(SuperpixelConfig):
        """A preset, and values that differ from it (``None``: the preset's; meanings in ``Settings``).

        Attributes:
            preset: named settings.
            engine: ``exact`` reorders the decoder's arithmetic; ``official`` calls it as it is;
                ``adaptive`` asks fewer prompts, an approximation.
            adaptive_share: prompts that ``adaptive`` may ask, as a share of the grid.
            points_per_batch: prompts decoded at once.
            rock_sand_water: ``False`` leaves the filter out whatever the preset says.
        """

        preset: PresetName = "svp"
        engine: Literal["official", "exact", "adaptive"] = "exact"
        adaptive_share: float = Field(0.25, gt=0, le=1)
        points_per_batch: int = 256
        points_per_side: int | None = None
        pred_iou_thresh: float | None = None
        stability_score_thresh: float | None = None
        stability_score_offset: float | None = None
        box_nms_thresh: float | None = None
        crop_n_layers: int | None = None
        crop_nms_thresh: float | None = None
        crop_overlap_ratio: float | None = None
        crop_n_points_downscale_factor: int | None = None
        min_mask_region_area: int | None = None
        score_thresh_offset: Triple | None = None
        score_nms_offset: Triple | None = None
        stability_score_bias: Triple | None = None
        rock_sand_water_thresh: float | None = None
        rock_sand_water: bool = True

        def settings(self) -> Settings:
            """The preset with this config's own values."""
            own = {name: getattr(self, name) for name in Settings.model_fields}
            settings = PRESETS[self.preset].but(**{k: v for k, v in own.items() if v is not None})
            return settings if self.rock_sand_water else settings.but(rock_sand_water_thresh=None)

    def __init__(self, config: SuperpixelConfig | None = None, sam: Sam | None = None):
        """Resolve the settings; see the base class."""
        super().__init__(config, sam)
        self.settings: Settings = self.config.settings()
        self.prompts_asked = 0

    @torch.inference_mode()
    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """Semantic superpixels of one image, whole objects first.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            image_id: not used.
            sam_embedding: ``[C, h, w]`` encoder output for the whole image, on any device; crops are
                always encoded.

        Returns:
            Masks at image resolution, predicted IoU and level of each; none if no candidate passes.
        """
        settings, size = self.settings, (image.shape[0], image.shape[1])
        boxes, layers = generate_crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
        parts = []
        for box, layer in zip(boxes, layers, strict=True):
            embedding = sam_embedding if layer == 0 else None
            parts.append(self._crop(image, box, layer, embedding))
        masks, ious, levels, crop_area = (torch.cat(column) for column in zip(*parts, strict=True))
        if len(boxes) > 1 and len(masks):
            kept = selection.non_maximum_suppression(
                selection.mask_boxes(masks), 1 / crop_area, settings.crop_nms_thresh
            )
            masks, ious, levels = masks[kept], ious[kept], levels[kept]
        if settings.min_mask_region_area > 0 and len(masks):
            masks, kept = self._without_small_regions(masks)
            ious, levels = ious[kept], levels[kept]
        if settings.rock_sand_water_thresh is not None and len(masks):
            kept = selection.rock_sand_water(masks, levels, settings.rock_sand_water_thresh)
            masks, ious, levels = masks[kept], ious[kept], levels[kept]
        return SuperpixelMasks(
            masks.cpu().numpy(),
            ious.float().cpu().numpy(),
            levels.to(torch.int8).cpu().numpy(),
        )

    def encode(self, image: np.ndarray) -> Tensor:
        """``[1, C, h, w]`` SAM encoder output for ``[H, W, 3]`` uint8: longest side scaled, then padded."""
        encoder = self.sam.image_encoder
        return encoder(sam_input(image, self.sam)[None].to(next(encoder.parameters()).dtype))

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """``(h, w)`` of an image of ``size`` inside the encoder's square input; the rest is padding."""
        return sam_frame(*size, self.sam.image_encoder.img_size)

    def decode(self, embedding: Any, points: Tensor) -> Candidates:
        """Candidates of ``points`` ``[P, 2]`` (x, y in the encoder's input) that pass the quality gate."""
        return _ENGINES[self.config.engine](self.sam, embedding, points, self._gate)

    def upscale(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """``[M, H, W]`` logits at image resolution from low-resolution ``[M, h, w]``."""
        return full_resolution(self.sam, logits, self.frame(size), size)

    @property
    def cut(self) -> float:
        """The logit above which a pixel belongs to the mask."""
        return float(self.sam.mask_threshold)

    def _given(self, embedding: Any) -> Tensor:
        """A cached embedding as the decoder wants it."""
        weights = self.sam.mask_decoder.iou_token.weight
        return torch.as_tensor(embedding).to(weights.device, weights.dtype)[None]

    def _crop(
        self, image: np.ndarray, box: list[int], layer: int, embedding: Any
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masks ``[M, H, W]`` in the image's frame, predicted IoU, level and crop area of one crop."""
        settings, (x1, y1, x2, y2) = self.settings, box
        crop, size = image[y1:y2, x1:x2], (y2 - y1, x2 - x1)
        embedding = self.encode(crop) if embedding is None else self._given(embedding)
        side = int(settings.points_per_side / settings.crop_n_points_downscale_factor**layer)
        points = torch.as_tensor(build_point_grid(side) * np.array(self.frame(size))[::-1])
        masks, ious, levels = self._candidates(embedding, points, size)
        if len(masks):
            boxes = selection.mask_boxes(masks)
            inside = ~is_box_near_crop_edge(boxes, box, [0, 0, image.shape[1], image.shape[0]])
            masks, ious, levels, boxes = masks[inside], ious[inside], levels[inside], boxes[inside]
            ranked = ious + selection.level_values(levels, settings.score_nms_offset)
            kept = selection.non_maximum_suppression(boxes, ranked, settings.box_nms_thresh)
            masks, ious, levels = masks[kept], ious[kept], levels[kept]
        masks = F.pad(masks, (x1, image.shape[1] - x2, y1, image.shape[0] - y2))
        area = torch.full((len(masks),), float(size[0] * size[1]), device=masks.device)
        return masks, ious, levels, area

    def _candidates(
        self, embedding: Any, points: Tensor, size: tuple[int, int]
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Masks ``[M, H, W]`` of a crop that pass gate and stability, their predicted IoU and level."""
        batch, columns = self.config.points_per_batch, []
        if self.config.engine == "adaptive":
            found, asked = adaptive_candidates(
                self.sam,
                embedding,
                points.to(embedding.device),
                self._gate,
                self.settings,
                input_size=self.frame(size),
                share=self.config.adaptive_share,
                batch=batch,
            )
            self.prompts_asked += asked
            masks, alive = self._stable(found, size)
            return masks, found.predicted_iou[alive], found.levels[alive]
        self.prompts_asked += len(points)
        for start in range(0, len(points), batch):
            found = self.decode(embedding, points[start : start + batch])
            masks, alive = self._stable(found, size)
            columns.append((masks, found.predicted_iou[alive], found.levels[alive]))
        masks, ious, levels = (torch.cat(column) for column in zip(*columns, strict=True))
        return masks, ious, levels

    def _gate(self, predicted_iou: Tensor, levels: Tensor) -> Tensor:
        settings = self.settings
        return selection.passes_quality(
            predicted_iou, levels, settings.pred_iou_thresh, settings.score_thresh_offset
        )

    def _stable(self, found: Candidates, size: tuple[int, int], chunk: int = 64) -> tuple[Tensor, Tensor]:
        """Masks ``[M, H, W]`` of the stable candidates, and their indices; chunked to bound the memory."""
        settings = self.settings
        masks, indices = [], []
        for start in range(0, max(len(found.logits), 1), chunk):
            part = slice(start, start + chunk)
            logits = self.upscale(found.logits[part], size)
            score = selection.stability_score(logits, settings.stability_score_offset, self.cut)
            score = score + selection.level_values(found.levels[part], settings.stability_score_bias)
            stable = (score >= settings.stability_score_thresh) & (logits.flatten(1).amax(dim=1) > self.cut)
            keep = torch.nonzero(stable).flatten()
            masks.append(logits[keep] > self.cut)
            indices.append(keep + start)
        return torch.cat(masks), torch.cat(indices)

    def _without_small_regions(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        """Cleaned masks after another suppression that prefers unchanged ones, and the indices kept."""
        settings = self.settings
        pairs = [
            selection.remove_small_regions(m, settings.min_mask_region_area) for m in masks.cpu().numpy()
        ]
        cleaned = torch.from_numpy(np.stack([mask for mask, _ in pairs])).to(masks.device)
        unchanged = torch.tensor([float(not changed) for _, changed in pairs], device=masks.device)
        threshold = max(settings.box_nms_thresh, settings.crop_nms_thresh)
        kept = selection.non_maximum_suppression(selection.mask_boxes(cleaned), unchanged, threshold)
        return cleaned[kept], kept
