"""Writes REFER files: ``refs(synth).p`` and ``instances.json`` as any REFER dataset has them."""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from harness.data.expressions import Expression
from harness.data.glyphs import CATEGORIES, FAMILY_A
from harness.data.scenes import Scene
from harness.files import atomic_path

__all__ = ["SPLIT_BY", "ReferWriter", "file_name", "rle_counts", "write_lines"]

SPLIT_BY = "synth"


@dataclass
class ReferWriter:
    """Collects what a dataset's REFER files will hold."""

    refs: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    programs: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0

    def add_image(self, scene: Scene, masks: np.ndarray) -> None:
        """List an image and all its objects."""
        name = file_name(scene.image_id)
        self.images[scene.image_id] = {
            "id": scene.image_id, "file_name": name, "width": scene.width, "height": scene.height
        }  # fmt: skip
        for thing, mask in zip(scene.objects, masks, strict=True):
            self.annotations[thing.ann_id] = {
                "id": thing.ann_id,
                "image_id": scene.image_id,
                "category_id": CATEGORIES.index(thing.category) + 1,
                "caption": " ".join((thing.size, thing.color, thing.pattern, thing.category)),
                "bbox": [float(v) for v in thing.box],
                "area": float(thing.area),
                "iscrowd": 0,
                "segmentation": {"size": [scene.height, scene.width], "counts": rle_counts(mask)},
            }

    def add_refs(self, scene: Scene, split: str, dataset: str, expressions: Iterable[Expression]) -> None:
        """Add expressions, one ref a target."""
        by_target: dict[int, list[Expression]] = {}
        for expression in expressions:
            by_target.setdefault(expression.target, []).append(expression)
        for ann_id, group in by_target.items():
            sentences = []
            for expression in group:
                self.sentences += 1
                text = expression.sentence
                sentences.append(
                    {"sent_id": self.sentences, "sent": text, "raw": text, "tokens": text.split()}
                )
                line = {"dataset": dataset, "sent_id": self.sentences, "image_id": scene.image_id}
                line |= {"ann_id": ann_id, "phenomenon": expression.phenomenon}
                self.programs.append({**line, "sentence": text, "program": expression.program})
            self.refs.append(
                {
                    "ref_id": len(self.refs) + 1,
                    "ann_id": ann_id,
                    "image_id": scene.image_id,
                    "category_id": self.annotations[ann_id]["category_id"],
                    "split": split,
                    "file_name": f"{Path(file_name(scene.image_id)).stem}_{ann_id}.png",
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "sentences": sentences,
                }
            )

    def write(self, folder: Path) -> None:
        """Write ``refs(synth).p`` (protocol 2, as REFER's own) and ``instances.json``."""
        with atomic_path(folder / f"refs({SPLIT_BY}).p") as aside:
            aside.write_bytes(pickle.dumps(self.refs, protocol=2))
        categories = [
            {"id": i, "name": name, "supercategory": "animate" if name in FAMILY_A else "thing"}
            for i, name in enumerate(CATEGORIES, start=1)
        ]
        content = {
            "info": {"description": "synthetic referring scenes"},
            "images": list(self.images.values()),
            "annotations": list(self.annotations.values()),
            "categories": categories,
        }
        with atomic_path(folder / "instances.json") as aside:
            aside.write_text(json.dumps(content))


def file_name(image_id: int) -> str:
    """The file name of a scene's image."""
    return f"scene_{image_id}.png"


def rle_counts(mask: np.ndarray) -> str:
    """COCO compressed counts of a mask ``[H, W]`` bool."""
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """Write one JSON value a line, atomically."""
    with atomic_path(path) as aside, aside.open("w") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")
