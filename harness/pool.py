"""The pretraining pool: synthetic images with every object named, in no split."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from harness.images import read_rgb

__all__ = ["Pool"]

_ATTRIBUTES = ("category", "color", "pattern", "size")
# A patch takes an object's name where the object covers at least this share of it.
_COVERED = 1 / 3


class Pool:
    """Images, masks, attributes and texts of the pool, by position ``0 … len - 1``."""

    def __init__(self, folder: Path | str):
        """Read the tables of ``folder``; images and masks are decoded when asked for."""
        folder = Path(folder)
        self.folder = folder
        self.images = pd.read_parquet(folder / "images.parquet").sort_values("image_id", ignore_index=True)
        annotations = pd.read_parquet(folder / "annotations.parquet")
        self.annotations = dict(iter(annotations.groupby("image_id")))
        self.parts = dict(iter(pd.read_parquet(folder / "parts.parquet").groupby("image_id")))
        self.expressions = pd.read_parquet(folder / "expressions.parquet")
        self.classes = {a: sorted(annotations[a].unique()) for a in _ATTRIBUTES}

    def __len__(self) -> int:
        return len(self.images)

    def image(self, index: int) -> np.ndarray:
        """uint8 ``[H, W, 3]``."""
        return read_rgb(self.folder.parent / self.images["path"][index])

    def class_counts(self) -> dict[str, int]:
        """Number of classes of each attribute; 0 is kept for the background."""
        return {a: len(names) for a, names in self.classes.items()}

    def _masks(self, index: int, table: dict[int, pd.DataFrame]) -> np.ndarray:
        row = self.images.loc[index]
        size = [int(row["height"]), int(row["width"])]
        frame = table.get(row["image_id"])
        if frame is None:
            return np.zeros((0, *size), np.uint8)
        decoded = coco_mask.decode([{"size": size, "counts": c.encode()} for c in frame["rle"]])
        return np.ascontiguousarray(decoded.transpose(2, 0, 1))

    def patch_labels(self, grid: tuple[int, int]) -> dict[str, np.ndarray]:
        """``[N, h*w]`` int64 labels of each attribute; 0 is background.

        Raises:
            ValueError: the grid does not divide the images.
        """
        h, w = grid
        index_of = {a: {n: i + 1 for i, n in enumerate(names)} for a, names in self.classes.items()}
        labels = {a: np.zeros((len(self), h * w), np.int64) for a in _ATTRIBUTES}
        for i, image_id in enumerate(self.images["image_id"]):
            frame = self.annotations.get(image_id)
            if frame is None:
                continue
            masks = self._masks(i, self.annotations)
            if masks.shape[1] % h or masks.shape[2] % w:
                raise ValueError(f"a {h}x{w} patch grid does not divide images of {masks.shape[1:]} pixels")
            cover = (
                masks.reshape(len(masks), h, masks.shape[1] // h, w, -1).mean((2, 4)).reshape(len(masks), -1)
            )
            owner, covered = cover.argmax(0), cover.max(0) >= _COVERED
            for attribute in _ATTRIBUTES:
                names = np.array([index_of[attribute][v] for v in frame[attribute]])
                labels[attribute][i] = np.where(covered, names[owner], 0)
        return labels

    def points(self, index: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Point prompts of an image and the three masks that each asks for.

        Returns:
            ``[count, 2]`` pixel ``x, y`` and ``[count, 3, H, W]`` masks: sub-part, part, whole.
        """
        objects = self._masks(index, self.annotations)
        parts = self._masks(index, self.parts)
        height, width = objects.shape[1:]
        background = 1 - objects.max(0, initial=0)
        points = np.zeros((count, 2))
        masks = np.zeros((count, 3, height, width), np.uint8)
        for i in range(count):
            draw = rng.random()
            pool = (
                parts
                if draw < 0.2 and len(parts)
                else objects
                if draw < 0.85 and len(objects)
                else background[None]
            )
            ys, xs = np.nonzero(pool[rng.integers(len(pool))])
            if len(ys) == 0:
                ys, xs = np.nonzero(np.ones((height, width)))
            pick = rng.integers(len(ys))
            y, x = ys[pick], xs[pick]
            points[i] = x + 0.5, y + 0.5
            whole = next((m for m in objects if m[y, x]), background)
            part = next((m for m in parts if m[y, x]), whole)
            masks[i] = part, whole, whole
        return points, masks

    def stories(self) -> list[str]:
        """Each expression behind its scene in words: ``objects . expression . the one meant``."""
        told: dict[int, dict[int, str]] = {}
        with (self.folder / "scenes.jsonl").open() as stream:
            for line in stream:
                scene = json.loads(line)
                told[scene["image_id"]] = {o["ann_id"]: _tell(o, scene["width"]) for o in scene["objects"]}
        stories = []
        for image_id, ann_id, sentence in self.expressions[["image_id", "ann_id", "sentence"]].itertuples(
            index=False
        ):
            objects = told[image_id]
            stories.append(f"{' ; '.join(objects.values())} . {sentence} . {objects[ann_id]}")
        return stories


def _tell(thing: dict, side: int) -> str:
    """``small red striped cup x3 y5``: positions in twelfths of the image."""
    x, y = (int(12 * c / side) for c in thing["center"])
    return f"{thing['size']} {thing['color']} {thing['pattern']} {thing['category']} x{x} y{y}"
