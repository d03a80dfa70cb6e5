"""Semantic superpixels: SAM in segment-everything mode and the selection of FMA-WSSS (arXiv 2312.03585).

So summaries of SVP (arXiv 2509.13676) tell it; the paper's text could not be read, and its own thresholds are
not known: the preset ``svp`` infers them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field, model_validator
from segment_anything.modeling import Sam
from segment_anything.utils.amg import build_point_grid, generate_crop_boxes, is_box_near_crop_edge
from torch import Tensor
from torch.nn import functional as F

from harness.models.sam import sam_frame, sam_input
from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource
from svp.superpixels import selection
from svp.superpixels.adaptive import Lattice, adaptive_candidates
from svp.superpixels.presets import PRESETS, PresetName, Settings, Triple
from svp.superpixels.prompting import (
    Candidates,
    Gate,
    exact_candidates,
    full_resolution,
    official_candidates,
)

__all__ = ["SamSuperpixels"]

_ENGINES: dict[str, Callable[[Sam, Tensor, Tensor, Gate], Candidates]] = {
    "official": official_candidates,
    "exact": exact_candidates,
}


@dataclass(frozen=True)
class _View:
    """What the encoder saw at once: an image, or a crop of it.

    Attributes:
        box: ``x1, y1, x2, y2`` in the image.
        image_size: ``(h, w)`` of the image.
        embedding: of the encoder.
        points: ``[P, 2]`` x, y to ask, in the encoder's input.
    """

    box: list[int]
    image_size: tuple[int, int]
    embedding: Any
    points: Tensor

    @property
    def size(self) -> tuple[int, int]:
        """``(h, w)`` in pixels."""
        x1, y1, x2, y2 = self.box
        return y2 - y1, x2 - x1


# Low-resolution logits ``[M, h, w]``, boxes ``[M, 4]`` in the view, predicted IoU and level ``[M]``.
_Stable = tuple[Tensor, Tensor, Tensor, Tensor]


def _chunk(size: tuple[int, int]) -> int:
    """Masks of ``(h, w)`` pixels that are up-scaled at once: a quarter of a GB of float32 at most."""
    return max(1, min(64, (1 << 26) // (size[0] * size[1])))


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
            adaptive_images: images whose prompts ``adaptive`` decodes together, if handed so many.
            compute: what the decoder multiplies in; ``bfloat16`` for ``adaptive`` only, as the others promise
                SAM's own masks.
            points_per_batch: prompts decoded at once.
            rock_sand_water: ``False`` leaves the filter out whatever the preset says.
        """

        preset: PresetName = "svp"
        engine: Literal["official", "exact", "adaptive"] = "exact"
        adaptive_share: float = Field(0.25, gt=0, le=1)
        adaptive_images: int = Field(8, ge=1)
        compute: Literal["float32", "bfloat16"] = "float32"
        points_per_batch: int = Field(256, ge=1)
        points_per_side: int | None = Field(None, ge=1)
        pred_iou_thresh: float | None = None
        stability_score_thresh: float | None = None
        stability_score_offset: float | None = None
        box_nms_thresh: float | None = None
        crop_n_layers: int | None = Field(None, ge=0)
        crop_nms_thresh: float | None = None
        crop_overlap_ratio: float | None = None
        crop_n_points_downscale_factor: int | None = Field(None, ge=1)
        min_mask_region_area: int | None = Field(None, ge=0)
        score_thresh_offset: Triple | None = None
        score_nms_offset: Triple | None = None
        stability_score_bias: Triple | None = None
        rock_sand_water_thresh: float | None = None
        rock_sand_water: bool = True

        @model_validator(mode="after")
        def _half_precision_is_approximate(self) -> Self:
            if self.compute != "float32" and self.engine != "adaptive":
                raise ValueError(
                    f"compute: {self.compute} needs engine: adaptive; '{self.engine}' promises SAM's masks"
                )
            return self

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
        return self.generate_all([image], image_ids=[image_id], sam_embeddings=[sam_embedding])[0]

    @property
    def images_at_once(self) -> int:
        """Images that :meth:`generate_all` is best handed together."""
        return self.config.adaptive_images if self.config.engine == "adaptive" else 1

    @torch.inference_mode()
    def generate_all(
        self,
        images: Sequence[np.ndarray],
        *,
        image_ids: Sequence[int | None] | None = None,
        sam_embeddings: Sequence[Any] | None = None,
    ) -> list[SuperpixelMasks]:
        """Superpixels of several images, ``images_at_once`` of them searched together; see the base class."""
        given = sam_embeddings if sam_embeddings is not None else [None] * len(images)
        ids = image_ids if image_ids is not None else [None] * len(images)
        made: list[SuperpixelMasks] = []
        for start in range(0, len(images), self.images_at_once):
            some = slice(start, start + self.images_at_once)
            views = [self._views(*pair) for pair in zip(images[some], given[some], strict=True)]
            found = iter(self._searched([view for of_image in views for view in of_image]))
            made += [
                self._selected([self._placed(view, next(found)) for view in of_image]) for of_image in views
            ]
        return [self._finished(*pair) for pair in zip(made, ids, strict=True)]

    def _finished(self, made: SuperpixelMasks, image_id: int | None) -> SuperpixelMasks:
        """What becomes of an image's superpixels; a subclass may change them."""
        return made

    def _selected(self, parts: list[tuple[Tensor, Tensor, Tensor, Tensor]]) -> SuperpixelMasks:
        """The superpixels of an image from the masks of its views (see :meth:`_placed`)."""
        settings = self.settings
        masks, ious, levels, crop_area = (torch.cat(column) for column in zip(*parts, strict=True))
        if len(parts) > 1 and len(masks):
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

    def _views(self, image: np.ndarray, embedding: Any) -> list[_View]:
        """The image and, where the settings ask for them, its crops."""
        settings, size = self.settings, (image.shape[0], image.shape[1])
        boxes, layers = generate_crop_boxes(size, settings.crop_n_layers, settings.crop_overlap_ratio)
        views = []
        for box, layer in zip(boxes, layers, strict=True):
            crop = image[box[1] : box[3], box[0] : box[2]]
            if not crop.size:  # of an image one pixel high
                continue
            own = embedding if layer == 0 else None
            side = max(1, int(settings.points_per_side / settings.crop_n_points_downscale_factor**layer))
            frame = self.frame((crop.shape[0], crop.shape[1]))
            points = torch.as_tensor(build_point_grid(side) * np.array(frame)[::-1])
            seen = self.encode(crop) if own is None else self._given(own)
            views.append(_View(box, size, seen, points))
        return views

    def _searched(self, views: list[_View]) -> Iterator[_Stable]:
        """Of each view what passes gate and stability."""
        batch = self.config.points_per_batch
        if self.config.engine != "adaptive":
            for view in views:
                self.prompts_asked += len(view.points)
                parts = view.points.split(batch)
                yield self._stable((self.decode(view.embedding, part) for part in parts), view.size)
            return
        found = adaptive_candidates(
            self.sam,
            torch.cat([view.embedding for view in views]),
            [Lattice(view.points.to(self.sam.device), self.frame(view.size)) for view in views],
            self._gate,
            self.settings,
            share=self.config.adaptive_share,
            batch=batch,
            compute=getattr(torch, self.config.compute),
        )
        for view, (candidates, asked) in zip(views, found, strict=True):
            self.prompts_asked += asked
            yield self._stable([candidates], view.size)

    def _placed(self, view: _View, found: _Stable) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Masks ``[M, H, W]`` in the image after suppression, predicted IoU, level, area of the view."""
        settings, (x1, y1, x2, y2), (height, width) = self.settings, view.box, view.image_size
        logits, boxes, ious, levels = found
        if len(logits):
            inside = ~is_box_near_crop_edge(boxes, view.box, [0, 0, width, height])
            logits, ious, levels, boxes = logits[inside], ious[inside], levels[inside], boxes[inside]
            ranked = ious + selection.level_values(levels, settings.score_nms_offset)
            kept = selection.non_maximum_suppression(boxes, ranked, settings.box_nms_thresh)
            logits, ious, levels = logits[kept], ious[kept], levels[kept]
        masks = self._masks(logits, view.size)
        masks = F.pad(masks, (x1, width - x2, y1, height - y2))
        area = torch.full((len(masks),), float((y2 - y1) * (x2 - x1)), device=masks.device)
        return masks, ious, levels, area

    def _gate(self, predicted_iou: Tensor, levels: Tensor) -> Tensor:
        settings = self.settings
        return selection.passes_quality(
            predicted_iou, levels, settings.pred_iou_thresh, settings.score_thresh_offset
        )

    def _stable(self, parts: Iterable[Candidates], size: tuple[int, int]) -> _Stable:
        """The stable candidates; their masks are made again of what suppression keeps, for memory."""
        settings, columns, chunk = self.settings, [], _chunk(size)
        for found in parts:
            for start in range(0, max(len(found.logits), 1), chunk):
                part = slice(start, start + chunk)
                logits, levels = self.upscale(found.logits[part], size), found.levels[part]
                score = selection.stability_score(logits, settings.stability_score_offset, self.cut)
                score = score + selection.level_values(levels, settings.stability_score_bias)
                stable = (score >= settings.stability_score_thresh) & (
                    logits.flatten(1).amax(dim=1) > self.cut
                )
                keep = torch.nonzero(stable).flatten()
                boxes = selection.mask_boxes(logits[keep] > self.cut)
                columns.append(
                    (found.logits[part][keep], boxes, found.predicted_iou[part][keep], levels[keep])
                )
        logits, boxes, ious, levels = (torch.cat(column) for column in zip(*columns, strict=True))
        return logits, boxes, ious, levels

    def _masks(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """``[M, H, W]`` bool from low-resolution ``[M, h, w]``."""
        return torch.cat([self.upscale(part, size) > self.cut for part in logits.split(_chunk(size))])

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
