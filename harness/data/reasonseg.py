"""Reads ReasonSeg (LISA, arXiv 2308.00692): one JSON of polygons beside each photograph.

``<split>/<name>.json`` holds ``text``, ``is_sentence`` and ``shapes``; larger shapes are painted first,
so that small ones lie on top; a shape labelled ``ignore`` hides its pixels from the score and one
labelled ``flag`` means nothing. Outlines are painted with their edge, as LISA's reader does, and meant in
the upright photograph (LISA opens it with OpenCV, which turns it as its EXIF orientation says); masks lie in
the stored one, as everywhere here.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageDraw
from pycocotools import mask as coco_mask

from harness.data.refer import Annotation, ImageRecord, Ref, ReferDataset, Sentence

__all__ = ["read_reasonseg"]

_IGNORED = 255
# From an upright photograph to the stored one, by EXIF orientation.
_BACK = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_90,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_270,
}
_SIDEWAYS = (5, 6, 7, 8)


def read_reasonseg(root: Path | str, dataset: str) -> ReferDataset:
    """Read ``<root>/<dataset>/<split>/*.json`` of every split that is there.

    A held-out photograph has one expression, the first of its texts, as LISA evaluates it; a train
    photograph has all of them. Ids are derived from the file's name, so that they do not hang on what
    else is in the folder.

    Args:
        root: the folder that holds the datasets' folders.
        dataset: the dataset's folder name.

    Raises:
        ValueError: nothing is there, or a file is malformed or lacks its photograph.
    """
    folder = Path(root) / dataset
    paths = sorted(folder.glob("*/*.json"))
    if not paths:
        raise ValueError(f"{folder} holds no <split>/*.json; run: svp data fetch reasonseg")
    refs, images, annotations, ignored, empty = [], {}, {}, {}, set()
    for path in paths:
        split = path.parent.name
        content = _content(path)
        record, orientation = _record(path)
        canvas = _paint(content["shapes"], record, orientation)
        key = record.image_id
        target = canvas == 1
        annotations[key] = Annotation(key, key, 1, _box(target), _rle(target))
        if not target.any():
            empty.add(key)
        if (canvas == _IGNORED).any():
            ignored[key] = _rle(canvas == _IGNORED)
        texts = content["text"] if split == "train" else content["text"][:1]
        sentences = tuple(Sentence(key * 16 + k, text) for k, text in enumerate(texts))
        refs.append(Ref(key, key, key, split, sentences))
        images[key] = record
    return ReferDataset(
        dataset,
        "authors",
        tuple(refs),
        images,
        annotations,
        {1: "object"},
        folder / "shapes",
        targetless=frozenset(empty),
        ignored=ignored,
    )


def _content(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    try:
        try:
            text = data.decode("utf-8")
        except UnicodeDecodeError:
            text = data.decode("cp1252")  # some of the published files are
        value = json.loads(text)
        texts = [str(t) for t in value["text"]]
        shapes = [(str(s["label"]).lower(), np.asarray(s["points"], float)) for s in value["shapes"]]
    except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is no ReasonSeg annotation ({error!r}); fetch it again") from error
    if not texts or len(texts) > 16 or not all(t.strip() for t in texts):
        raise ValueError(f"{path} has no text, an empty one, or more than 16; fetch it again")
    if any(p.ndim != 2 or p.shape[1] != 2 or not np.isfinite(p).all() for _, p in shapes):
        raise ValueError(f"{path} has a shape that is no list of points; fetch it again")
    return {"text": texts, "shapes": shapes}


def _record(path: Path) -> tuple[ImageRecord, int]:
    """The photograph beside ``path``, and its EXIF orientation."""
    image = path.with_suffix(".jpg")
    try:
        with Image.open(image) as opened:
            width, height = opened.size
            orientation = opened.getexif().get(ExifTags.Base.Orientation, 1)
    except OSError as error:
        raise ValueError(
            f"image {image} is missing or no image ({error}); unpack the archive again"
        ) from error
    name = f"{path.parent.name}/{path.stem}"
    key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:6], "big") | 1 << 48  # never one of COCO's
    return ImageRecord(key, f"{path.parent.name}/{image.name}", width, height), orientation


def _paint(shapes: list[tuple[str, np.ndarray]], record: ImageRecord, orientation: int) -> np.ndarray:
    """uint8 ``[H, W]`` in the stored frame: 1 target, 255 not scored."""
    turn = _BACK.get(orientation)
    size = (record.width, record.height) if orientation not in _SIDEWAYS else (record.height, record.width)
    painted = []
    for label, points in shapes:
        if label == "flag":
            continue
        layer = Image.new("L", size)
        corners = [(int(x), int(y)) for x, y in points]
        draw = ImageDraw.Draw(layer)
        if len(corners) > 2:
            draw.polygon(corners, fill=1, outline=1)
        else:
            draw.line(corners, fill=1) if len(corners) == 2 else draw.point(corners, fill=1)
        painted.append((label, np.asarray(layer, bool)))
    canvas = np.zeros(size[::-1], np.uint8)
    for label, covered in sorted(painted, key=lambda item: -int(item[1].sum())):
        canvas[covered] = _IGNORED if "ignore" in label else 1
    return canvas if turn is None else np.asarray(Image.fromarray(canvas).transpose(turn))


def _rle(mask: np.ndarray) -> dict[str, Any]:
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))


def _box(mask: np.ndarray) -> tuple[float, float, float, float]:
    x, y, w, h = (float(v) for v in coco_mask.toBbox(_rle(mask)))
    return x, y, w, h
