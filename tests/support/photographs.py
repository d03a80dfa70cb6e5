"""A made-up photograph, and gates of the SAM source that a random SAM passes."""

import numpy as np

OPEN = {  # gates low enough for a random SAM
    "preset": "official_default",
    "points_per_side": 6,
    "pred_iou_thresh": 0.05,
    "stability_score_thresh": 0.4,
    "stability_score_offset": 0.01,
    "box_nms_thresh": 0.97,
    "crop_nms_thresh": 0.97,
}


def photograph(height=96, width=96, seed=0):
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (4, 5, 3)).astype(np.uint8)
    rows, columns = np.arange(height) * 4 // height, np.arange(width) * 5 // width
    return np.clip(coarse[rows][:, columns] + rng.integers(-9, 9, (height, width, 3)), 0, 255).astype(
        np.uint8
    )


def by_content(masks):
    return sorted(mask.tobytes() for mask in masks)
