"""Named settings of the SAM source: those of FMA-WSSS by its own names, and the one inferred for SVP."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict

__all__ = ["PRESETS", "PresetName", "Settings"]

PresetName = Literal[
    "svp",
    "official_default",
    "official_heavy",
    "ssa_light",
    "ssa_light_8p",
    "ssa_default",
    "ssa_heavy",
    "l2_only",
    "l2_only_s1",
    "l2_only_s1_t4",
    "l2_nmsf",
    "l2_nmsf_s1",
    "l2_nmsf_s1_c0",
    "l2_nmsf_s1_rsw3",
]

Triple = tuple[float, float, float]


class Settings(BaseModel):
    """Every number of the selection. The defaults are those of SAM's own mask generator.

    Attributes:
        points_per_side: prompts along each side of the image.
        pred_iou_thresh: a candidate stays if predicted IoU + ``score_thresh_offset[level]`` exceeds it.
        stability_score_thresh: a candidate stays if stability + ``stability_score_bias[level]`` reaches it.
        stability_score_offset: logits by which the cut is moved up and down for the stability score.
        box_nms_thresh: box IoU above which the lower of two candidates of one crop is dropped.
        crop_n_layers: 0 takes the whole image only; each layer more encodes ``4**layer`` crops.
        crop_nms_thresh: box IoU above which the candidate of the larger crop is dropped.
        crop_overlap_ratio: overlap of crops, as a share of the image's shorter side.
        crop_n_points_downscale_factor: prompts a side are divided by its ``layer``-th power.
        min_mask_region_area: holes and islands of fewer pixels are removed; 0 leaves them.
        score_thresh_offset: by level (sub-part, part, whole), added before the quality gate.
        score_nms_offset: by level, added to the score that suppression ranks by.
        stability_score_bias: by level, added to the stability score.
        rock_sand_water_thresh: threshold of the rock-sand-water filter; ``None`` leaves it out.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    points_per_side: int = 32
    pred_iou_thresh: float = 0.88
    stability_score_thresh: float = 0.95
    stability_score_offset: float = 1.0
    box_nms_thresh: float = 0.7
    crop_n_layers: int = 0
    crop_nms_thresh: float = 0.7
    crop_overlap_ratio: float = 512 / 1500
    crop_n_points_downscale_factor: int = 1
    min_mask_region_area: int = 0
    score_thresh_offset: Triple = (0.0, 0.0, 0.0)
    score_nms_offset: Triple = (0.0, 0.0, 0.0)
    stability_score_bias: Triple = (0.0, 0.0, 0.0)
    rock_sand_water_thresh: float | None = None

    def but(self, **changes: object) -> Settings:
        """These settings with some values changed (checked again)."""
        return Settings(**(self.model_dump() | changes))


_DEFAULT = Settings()
_LOOSE = _DEFAULT.but(
    pred_iou_thresh=0.86,
    stability_score_thresh=0.92,
    min_mask_region_area=100,
    crop_n_points_downscale_factor=2,
)
_HEAVY = _LOOSE.but(crop_n_layers=1)
_WHOLE_ONLY = _HEAVY.but(score_thresh_offset=(-1.0, -1.0, 0.0))
_WHOLE_ONLY_S1 = _HEAVY.but(score_thresh_offset=(-1.0, -1.0, 0.1))
_WHOLE_FIRST = _HEAVY.but(score_nms_offset=(0.0, 0.0, 1.0))
_WHOLE_FIRST_S1 = _WHOLE_FIRST.but(score_thresh_offset=(0.0, 0.0, 0.1))
_FMA = _WHOLE_FIRST_S1.but(rock_sand_water_thresh=0.3)

PRESETS: dict[str, Settings] = {
    # FMA-WSSS's own setting without crops: SVP reuses one SAM encoding for superpixels and mask, so it
    # can afford none (inferred; its paper does not say)
    "svp": _FMA.but(crop_n_layers=0),
    "official_default": _DEFAULT,
    "official_heavy": _HEAVY,
    "ssa_light": _LOOSE.but(points_per_side=16),
    "ssa_light_8p": _LOOSE.but(points_per_side=8),
    "ssa_default": _LOOSE,
    "ssa_heavy": _HEAVY.but(points_per_side=64),
    "l2_only": _WHOLE_ONLY,
    "l2_only_s1": _WHOLE_ONLY_S1,
    "l2_only_s1_t4": _WHOLE_ONLY_S1.but(stability_score_bias=(0.0, 0.0, 0.04)),
    "l2_nmsf": _WHOLE_FIRST,
    "l2_nmsf_s1": _WHOLE_FIRST_S1,
    "l2_nmsf_s1_c0": _WHOLE_FIRST_S1.but(crop_n_layers=0),
    "l2_nmsf_s1_rsw3": _FMA,
}
