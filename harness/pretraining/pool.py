"""The pretraining pool: synthetic images with every object named, in no split."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from harness.images import read_rgb
from harness.models.captions import place_words

__all__ = ["DenseTargets", "Pool", "Story", "Thing"]

_ATTRIBUTES = ("category", "color", "pattern", "size")
# A patch takes an object's name where the object covers at least this share of it.
_COVERED = 1 / 3


@dataclass(frozen=True)
class DenseTargets:
    """Dense targets of ``N`` images.

    Attributes:
        fine: ``[N, 4, s, s]`` object, detail, and the offset ``x, y`` to the object's centre.
        centre: ``[N, s/4, s/4, 2]`` normalised ``x, y`` of the centre of the object that owns a cell.
        owned: ``[N, s/4, s/4]`` 1 where an object owns the cell.
    """

    fine: np.ndarray
    centre: np.ndarray
    owned: np.ndarray


@dataclass(frozen=True)
class Thing:
    """An object in words: its looks, its centre and its extent (normalised)."""

    looks: tuple[str, ...]
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Story:
    """A scene told in words, an expression, and the object that it means: its looks, its place, which it is.

    ``image`` is the scene's position in the pool.
    """

    image: int
    ann_id: int
    things: tuple[Thing, ...]
    expression: str
    looks: tuple[str, ...]
    place: tuple[str, str]


class Pool:
    """Images, masks, attributes and texts of the pool, by position ``0 … len - 1``."""

    def __init__(self, folder: Path | str):
        """Read the tables of ``folder``; images and masks are decoded when asked for."""
        folder = Path(folder)
        self.folder = folder
        self.images = pd.read_parquet(folder / "images.parquet").sort_values("image_id", ignore_index=True)
        annotations = pd.read_parquet(folder / "annotations.parquet")
        self.annotations = _by_image(annotations)
        # Plain values beside the tables: pretraining asks for masks tens of thousands of times.
        self._objects = _encoded(self.annotations)
        self._parts = _encoded(_by_image(pd.read_parquet(folder / "parts.parquet")))
        self._places = self.images[["image_id", "height", "width"]].to_numpy().tolist()
        keys = annotations[["image_id", "ann_id"]].itertuples(index=False, name=None)
        self._of_object = dict(zip(keys, (c.encode() for c in annotations["rle"]), strict=True))
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

    def _masks(self, index: int, encoded: dict[int, list[bytes]]) -> np.ndarray:
        image_id, *size = self._places[index]
        if image_id not in encoded:
            return np.zeros((0, *size), np.uint8)
        decoded = coco_mask.decode([{"size": size, "counts": counts} for counts in encoded[image_id]])
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
            masks = self._masks(i, self._objects)
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

    def dense_targets(self, side: int) -> DenseTargets:
        """What stands where, on a grid of ``side`` cells and on one of a quarter of that."""
        count, coarse = len(self), side // 4
        fine = np.zeros((count, 4, side, side), np.float32)
        centre = np.zeros((count, coarse, coarse, 2), np.float32)
        owned = np.zeros((count, coarse, coarse), np.float32)
        for i in range(count):
            objects, parts = self._masks(i, self._objects), self._masks(i, self._parts)
            step = objects.shape[1] // side
            share = np.zeros((coarse, coarse))
            for mask in objects:
                ys, xs = np.nonzero(mask)
                if len(ys) == 0:
                    continue
                x, y = (xs.mean() + 0.5) / mask.shape[1], (ys.mean() + 0.5) / mask.shape[0]
                cells = mask[step // 2 :: step, step // 2 :: step] > 0
                rows, columns = np.nonzero(cells)
                fine[i, 0][cells] = 1
                # in units of a sixth of the image, about an object's extent
                fine[i, 2][cells] = 6 * (x - (columns + 0.5) / side)
                fine[i, 3][cells] = 6 * (y - (rows + 0.5) / side)
                cover = cells.reshape(coarse, 4, coarse, 4).mean((1, 3))
                more = cover > np.maximum(share, 0.25)
                centre[i][more], owned[i][more], share[more] = (x, y), 1, cover[more]
            if len(parts):
                fine[i, 1] = parts.max(0)[step // 2 :: step, step // 2 :: step]
        return DenseTargets(fine, centre, owned)

    def points(self, index: int, count: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Point prompts of an image and the three masks that each asks for.

        Returns:
            ``[count, 2]`` pixel ``x, y`` and ``[count, 3, H, W]`` masks: sub-part, part, whole.
        """
        objects = self._masks(index, self._objects)
        parts = self._masks(index, self._parts)
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

    def regions(self, index: int, count: int, rng: np.random.Generator) -> np.ndarray:
        """``[count, H, W]`` masks of objects of an image, drawn with replacement."""
        objects = self._masks(index, self._objects)
        return objects[rng.integers(len(objects), size=count)]

    def object_mask(self, index: int, ann_id: int) -> np.ndarray:
        """uint8 ``[H, W]`` of one object of an image."""
        image_id, *size = self._places[index]
        return coco_mask.decode({"size": size, "counts": self._of_object[image_id, ann_id]})

    def stories(self) -> list[Story]:
        """Each expression with its scene in words, piece by piece, and the words of the object meant."""
        told: dict[int, list[dict]] = {}
        sides: dict[int, int] = {}
        with (self.folder / "scenes.jsonl").open() as stream:
            for line in stream:
                scene = json.loads(line)
                told[scene["image_id"]] = scene["objects"]
                sides[scene["image_id"]] = scene["width"]
        position = {image_id: i for i, image_id in enumerate(self.images["image_id"])}
        stories = []
        columns = ["image_id", "ann_id", "sentence"]
        for image_id, ann_id, sentence in self.expressions[columns].itertuples(index=False):
            objects, side = told[image_id], sides[image_id]
            meant = next(o for o in objects if o["ann_id"] == ann_id)
            things = tuple(_thing(o, side) for o in objects)
            place = place_words(meant["center"][0] / side, meant["center"][1] / side)
            stories.append(Story(position[image_id], ann_id, things, sentence, _looks(meant), place))
        return stories


def _by_image(frame: pd.DataFrame) -> dict[int, pd.DataFrame]:
    return {int(key): part for key, part in frame.groupby("image_id")}  # type: ignore[arg-type]


def _encoded(frames: dict[int, pd.DataFrame]) -> dict[int, list[bytes]]:
    """RLE counts of the masks of each image."""
    return {image_id: [counts.encode() for counts in frame["rle"]] for image_id, frame in frames.items()}


def _thing(told: dict, side: int) -> Thing:
    center, box = told["center"], told["box"]
    return Thing(_looks(told), center[0] / side, center[1] / side, box[2] / side, box[3] / side)


def _looks(thing: dict) -> tuple[str, ...]:
    return thing["size"], thing["color"], thing["pattern"], thing["category"]
