"""A tiny study on a grid one can count by hand: 4x4 pixels, four photographs, six expressions."""

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask


def encode(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def box(x1: int, y1: int, x2: int, y2: int, size: int = 4) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[y1:y2, x1:x2] = True
    return mask


# (split, ref, sent, image, truth, prediction) -> worked out by hand: I, U
#   val  10 100  img 1  2x2 against the same 2x2               4, 4   IoU 1
#   val  10 101  img 1  2x2 against its upper row              2, 4   IoU 1/2
#   val  11 102  img 2  2x4 against a 4x2 crossing it          4, 12  IoU 1/3
#   testA 12 103 img 3  1x1 against another pixel              0, 2   IoU 0
#   testA 13 104 img 4  4x4 against nothing                    0, 16  IoU 0
#   testA 13 105 img 4  4x4 against three rows                 12, 16 IoU 3/4
CASES = [
    ("val", 10, 100, 1, box(0, 0, 2, 2), box(0, 0, 2, 2)),
    ("val", 10, 101, 1, box(0, 0, 2, 2), box(0, 0, 2, 1)),
    ("val", 11, 102, 2, box(0, 0, 4, 2), box(0, 0, 2, 4)),
    ("testA", 12, 103, 3, box(0, 0, 1, 1), box(3, 3, 4, 4)),
    ("testA", 13, 104, 4, box(0, 0, 4, 4), None),
    ("testA", 13, 105, 4, box(0, 0, 4, 4), box(0, 0, 4, 3)),
]


@pytest.fixture
def study():
    """``(predictions, expressions, annotations)`` of CASES."""
    expressions = pd.DataFrame(
        [
            {
                "dataset": "toy",
                "split": split,
                "ref_id": ref,
                "sent_id": sent,
                "ann_id": ref * 10,
                "image_id": image,
                "sentence": "thing",
                "phenomenon": "location" if sent % 2 else "attribute",
            }
            for split, ref, sent, image, _, _ in CASES
        ]
    )
    annotations = pd.DataFrame(
        [
            {
                "dataset": "toy",
                "ann_id": ref * 10,
                "image_id": image,
                "rle": encode(truth),
                "height": 4,
                "width": 4,
            }
            for _, ref, _, image, truth, _ in CASES
        ]
    ).drop_duplicates("ann_id", ignore_index=True)
    predictions = pd.DataFrame(
        [
            {
                "study": "toy",
                "projector": "alpha",
                "variant": "base",
                "budget": "auto",
                "seed": 0,
                "dataset": "toy",
                "split": split,
                "protocol": "full-0123",
                "ref_id": ref,
                "sent_id": sent,
                "image_id": image,
                "visual_tokens": image,
                "seg_emitted": guess is not None,
                "status": "ok",
                "rle": None if guess is None else encode(guess),
                "height": 4,
                "width": 4,
            }
            for split, ref, sent, image, _, guess in CASES
        ]
    )
    return predictions, expressions, annotations
