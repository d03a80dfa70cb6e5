"""Reads the REFER layout: ``refs(<split_by>).p`` beside a COCO ``instances.json``.

The layout is that of github.com/lichengunc/refer, which RefCOCO, RefCOCO+ and RefCOCOg are handed
out in. Nothing is repaired: what does not fit together is refused with the file and the mend.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

from harness.data.unpickle import load_plain_pickle
from harness.scoring.rle import run_lengths

__all__ = [
    "Annotation",
    "ImageRecord",
    "Ref",
    "ReferDataset",
    "Sentence",
    "read_instances",
    "read_refer",
    "refuse_doubles",
    "single_cover",
    "to_rle",
]


@dataclass(frozen=True)
class Sentence:
    """One referring expression: its id and its text as REFER processed it."""

    sent_id: int
    text: str


@dataclass(frozen=True)
class Ref:
    """One referred object with its expressions."""

    ref_id: int
    ann_id: int
    image_id: int
    split: str
    sentences: tuple[Sentence, ...]


@dataclass(frozen=True)
class ImageRecord:
    """An image as ``instances.json`` lists it: file name and size in pixels."""

    image_id: int
    file_name: str
    width: int
    height: int


@dataclass(frozen=True)
class Annotation:
    """An annotated object; ``segmentation`` is as in COCO (polygons or RLE), see :func:`to_rle`.

    ``caption`` is no key of COCO's: the object in words, where the file tells it.
    """

    ann_id: int
    image_id: int
    category_id: int
    box: tuple[float, float, float, float]
    segmentation: Any
    caption: str = ""


@dataclass(frozen=True)
class ReferDataset:
    """A REFER dataset whose parts are known to fit together.

    Attributes:
        name: the dataset's folder name.
        split_by: the word in ``refs(<split_by>).p``.
        refs: all refs of all splits, in file order.
        images: by image id.
        annotations: by annotation id; all that the file lists, not only referred ones.
        categories: category names by id.
        instances_path: the file the annotations came from, for messages.
        targetless: annotations that are empty on purpose: their expressions mean nothing in the image.
        ignored: RLE of the pixels that are not scored, by annotation id.
    """

    name: str
    split_by: str
    refs: tuple[Ref, ...]
    images: dict[int, ImageRecord]
    annotations: dict[int, Annotation]
    categories: dict[int, str]
    instances_path: Path
    targetless: frozenset[int] = frozenset()
    ignored: dict[int, dict[str, Any]] = field(default_factory=dict)

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits that its refs stand in, sorted."""
        return tuple(sorted({ref.split for ref in self.refs}))

    def of_split(self, split: str) -> tuple[Ref, ...]:
        """The refs of one split, in file order.

        Raises:
            ValueError: there is no such split.
        """
        found = tuple(ref for ref in self.refs if ref.split == split)
        if not found:
            raise ValueError(
                f"{self.instances_path.parent}/refs({self.split_by}).p has no split '{split}'; "
                f"it has {', '.join(self.splits)}"
            )
        return found


def read_refer(root: Path | str, dataset: str, split_by: str) -> ReferDataset:
    """Read ``<root>/<dataset>/refs(<split_by>).p`` and ``<root>/<dataset>/instances.json``.

    Args:
        root: the folder that holds the datasets' folders.
        dataset: a dataset's folder name.
        split_by: ``unc``, ``google``, ``umd`` …

    Raises:
        ValueError: a file is missing, truncated, unsafe or malformed; an id stands twice; a ref's image or
            annotation is missing; a sentence is empty.
    """
    folder = Path(root) / dataset
    refs_path, instances_path = folder / f"refs({split_by}).p", folder / "instances.json"
    for path in (refs_path, instances_path):
        if not path.is_file():
            raise ValueError(f"{path} does not exist; put the dataset in REFER layout below {root}")
    images, annotations, categories = read_instances(instances_path)
    raw = load_plain_pickle(refs_path)
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{refs_path} does not hold a list of refs; fetch it again")
    refs = tuple(_ref(entry, refs_path) for entry in raw)
    refuse_doubles((ref.ref_id for ref in refs), "ref_id", refs_path)
    refuse_doubles((s.sent_id for ref in refs for s in ref.sentences), "sent_id", refs_path)
    for ref in refs:
        if ref.ann_id not in annotations:
            raise ValueError(
                f"{refs_path}: ref {ref.ref_id} needs annotation {ref.ann_id}, which {instances_path} lacks; "
                "take both files from one source"
            )
        if annotations[ref.ann_id].image_id != ref.image_id or ref.image_id not in images:
            raise ValueError(
                f"{refs_path}: ref {ref.ref_id} says image {ref.image_id}, but {instances_path} lists "
                f"its annotation {ref.ann_id} elsewhere; take both files from one source"
            )
    return ReferDataset(dataset, split_by, refs, images, annotations, categories, instances_path)


def to_rle(segmentation: Any, height: int, width: int) -> dict[str, Any]:
    """A COCO segmentation as one compressed RLE.

    Several polygons are a union: a pixel under two of them counts once.

    Args:
        segmentation: polygons ``[[x1, y1, x2, y2, …], …]``, uncompressed RLE (``counts`` a list), or
            compressed RLE (``counts`` str or bytes).
        height: of the image, pixels.
        width: of the image, pixels.

    Returns:
        ``{"size": [height, width], "counts": bytes}`` for ``pycocotools.mask``.

    Raises:
        ValueError: the segmentation is malformed or made for another image size.
    """
    if isinstance(segmentation, dict):
        return _checked_rle(segmentation, height, width)
    if not isinstance(segmentation, list) or not segmentation:
        raise ValueError("the segmentation is neither polygons nor RLE")
    if all(isinstance(part, dict) for part in segmentation):  # gRefCOCO has lists of RLEs
        return coco_mask.merge([_checked_rle(part, height, width) for part in segmentation], intersect=False)
    for polygon in segmentation:
        # pycocotools would read four numbers as a box.
        if not isinstance(polygon, list) or len(polygon) < 6 or len(polygon) % 2:
            raise ValueError("a polygon needs at least three x, y pairs")
        if not np.isfinite(np.asarray(polygon, dtype=float)).all():
            raise ValueError("a polygon's coordinates are not all finite")
    return coco_mask.merge(coco_mask.frPyObjects(segmentation, height, width), intersect=False)


def single_cover(segmentation: Any, height: int, width: int) -> dict[str, Any] | None:
    """The pixels under exactly one polygon of a checked segmentation; ``None`` where that is all of them.

    LISA's and GLaMM's readers add an annotation's polygons up, so that a pixel under two of them is
    neither target nor background when they score.
    """
    if not isinstance(segmentation, list) or len(segmentation) < 2 or isinstance(segmentation[0], dict):
        return None
    layers = coco_mask.decode(coco_mask.frPyObjects(segmentation, height, width))
    covered = layers.sum(axis=2, dtype=np.int64)
    if covered.max() < 2:
        return None
    return coco_mask.encode(np.asfortranarray((covered == 1).astype(np.uint8)))


def _checked_rle(segmentation: dict[str, Any], height: int, width: int) -> dict[str, Any]:
    size, counts = segmentation.get("size"), segmentation.get("counts")
    if size is None or [int(s) for s in size] != [height, width]:
        raise ValueError(f"the RLE's size {size} is not the image's [{height}, {width}]")
    if isinstance(counts, str | bytes):
        text = counts if isinstance(counts, str) else counts.decode("latin-1")
        try:
            run_lengths(text, height, width)
        except ValueError as error:
            raise ValueError(f"the RLE {error}") from error
        return {"size": [height, width], "counts": text.encode("ascii")}
    if not isinstance(counts, list):
        raise ValueError("the RLE has no counts")
    runs = np.array([int(c) for c in counts], dtype=np.int64)
    # pycocotools trusts the counts; a wrong sum would read or write outside the mask.
    if (runs < 0).any() or runs.sum() != height * width:
        raise ValueError(f"the RLE's runs do not add up to {height} x {width} pixels")
    return coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)


def read_instances(path: Path) -> tuple[dict[int, ImageRecord], dict[int, Annotation], dict[int, str]]:
    """Images, annotations and category names of a COCO instances file, by id.

    Raises:
        ValueError: it is not whole, or ids stand twice.
    """
    try:
        content = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch it again") from error
    try:
        images = [
            ImageRecord(int(i["id"]), str(i["file_name"]), int(i["width"]), int(i["height"]))
            for i in content["images"]
        ]
        annotations = [
            Annotation(
                int(a["id"]),
                int(a["image_id"]),
                int(a["category_id"]),
                tuple(float(v) for v in a["bbox"]),  # type: ignore[arg-type]
                a["segmentation"],
                str(a.get("caption", "")),
            )
            for a in content["annotations"]
        ]
        categories = {int(c["id"]): str(c["name"]) for c in content["categories"]}
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} is not a COCO instances file ({error!r}); fetch it again") from error
    refuse_doubles((i.image_id for i in images), "image id", path)
    refuse_doubles((a.ann_id for a in annotations), "annotation id", path)
    for annotation in annotations:
        if annotation.category_id not in categories or len(annotation.box) != 4:
            raise ValueError(
                f"{path}: annotation {annotation.ann_id} has no known category or no box; fetch it again"
            )
    for image in images:
        if Path(image.file_name).name != image.file_name:
            raise ValueError(f"{path}: image {image.image_id} has a path for a file name ({image.file_name})")
    return {i.image_id: i for i in images}, {a.ann_id: a for a in annotations}, categories


def _ref(entry: Any, path: Path) -> Ref:
    try:
        sentences = tuple(_sentence(s, path) for s in entry["sentences"])
        ref = Ref(
            int(entry["ref_id"]), int(entry["ann_id"]), int(entry["image_id"]), str(entry["split"]), sentences
        )
    except (KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds a ref that lacks a REFER field ({error!r}); fetch it again"
        ) from error
    if not sentences:
        raise ValueError(f"{path}: ref {ref.ref_id} has no sentence; fetch it again or take the ref out")
    return ref


def _sentence(entry: Any, path: Path) -> Sentence:
    text = str(entry["sent"])
    if not text.strip() or not entry.get("tokens", True):
        raise ValueError(f"{path}: sentence {entry['sent_id']} has no tokens; fetch it again or take it out")
    return Sentence(int(entry["sent_id"]), text)


def refuse_doubles(ids: Iterable[int], what: str, path: Path) -> None:
    """Raise ``ValueError`` where an id stands twice."""
    seen: set[int] = set()
    for value in ids:
        if value in seen:
            raise ValueError(f"{path}: {what} {value} stands twice; fetch the file again")
        seen.add(value)
