"""A REFER folder written by hand, for tests to spoil."""

import json
import pickle
from pathlib import Path

import numpy as np
from PIL import Image


def rectangle(x1: float, y1: float, x2: float, y2: float) -> list[float]:
    return [x1, y1, x2, y1, x2, y2, x1, y2]


class Folder:
    """A REFER folder of two 40 x 30 images that tests change before they write it."""

    def __init__(self, root: Path):
        self.root = root
        self.images = [{"id": i, "file_name": f"im{i}.png", "width": 40, "height": 30} for i in (1, 2)]
        self.annotations = [
            self.annotation(11, 1, [rectangle(2, 3, 12, 8)]),
            self.annotation(12, 1, [rectangle(20, 10, 30, 20)]),
            self.annotation(21, 2, [rectangle(5, 5, 15, 15)], category=2),
        ]
        self.refs = [
            self.ref(1, 11, 1, "train", {101: "left cup", 102: "the red one"}),
            self.ref(2, 21, 2, "val", {103: "box next to the cup"}),
        ]

    @staticmethod
    def annotation(ann_id, image_id, segmentation, category=1):
        return {
            "id": ann_id, "image_id": image_id, "category_id": category, "iscrowd": 0, "area": 0.0,
            "bbox": [0, 0, 1, 1], "segmentation": segmentation,
        }  # fmt: skip

    @staticmethod
    def ref(ref_id, ann_id, image_id, split, sentences):
        return {
            "ref_id": ref_id, "ann_id": ann_id, "image_id": image_id, "split": split, "category_id": 1,
            "file_name": "x.jpg", "sent_ids": list(sentences),
            "sentences": [
                {"sent_id": i, "sent": s, "raw": s, "tokens": s.split()} for i, s in sentences.items()
            ],
        }  # fmt: skip

    def write(self, name="toy", protocol=2) -> Path:
        folder = self.root / name
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "refs(x).p").write_bytes(pickle.dumps(self.refs, protocol=protocol))
        categories = [{"id": 1, "name": "cup"}, {"id": 2, "name": "box"}]
        content = {"images": self.images, "annotations": self.annotations, "categories": categories}
        (folder / "instances.json").write_text(json.dumps(content))
        (self.root / "images" / "deep").mkdir(parents=True, exist_ok=True)
        for image in self.images:
            noise = np.random.default_rng(image["id"]).integers(0, 255, (30, 40, 3), dtype=np.uint8)
            Image.fromarray(noise).save(self.root / "images" / "deep" / image["file_name"])
        return self.root
