"""Reads gRefCOCO: expressions for none, one or several objects (GRES, arXiv 2306.00968).

``grefs(<split_by>).json`` stands beside a COCO ``instances.json``; a ref names a list of annotations,
``[-1]`` where nothing in the image is meant. Several annotations become one made-up annotation with a
negative id, the union of their masks, so that every expression has one mask as elsewhere.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from pycocotools import mask as coco_mask

from harness.data.refer import Annotation, Ref, ReferDataset, Sentence, read_instances, refuse_doubles, to_rle

__all__ = ["read_grefcoco"]

_SEVERAL, _NOTHING = -2, -1  # category ids that COCO has not


def read_grefcoco(root: Path | str, dataset: str, split_by: str) -> ReferDataset:
    """Read ``<root>/<dataset>/grefs(<split_by>).json`` and ``instances.json``.

    Args:
        root: the folder that holds the datasets' folders.
        dataset: the dataset's folder name.
        split_by: ``unc``.

    Raises:
        ValueError: a file is missing or malformed, or the two do not belong together.
    """
    folder = Path(root) / dataset
    path, instances_path = folder / f"grefs({split_by}).json", folder / "instances.json"
    for each in (path, instances_path):
        if not each.is_file():
            raise ValueError(f"{each} does not exist; run: svp data fetch grefcoco")
    images, annotations, categories = read_instances(instances_path)
    try:
        raw = json.loads(path.read_bytes())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not whole JSON ({error}); fetch it again") from error
    if not isinstance(raw, list) or not raw:
        raise ValueError(f"{path} does not hold a list of refs; fetch it again")
    categories = {**categories, _SEVERAL: "several", _NOTHING: "nothing"}
    made: dict[int, Annotation] = {}
    empty: set[int] = set()
    refs = []
    for entry in raw:
        ref, wanted = _ref(entry, path)
        if ref.image_id not in images:
            raise ValueError(
                f"{path}: ref {ref.ref_id} is about image {ref.image_id}, which {instances_path} lacks"
            )
        parts = []
        for ann_id in wanted:
            if ann_id not in annotations or annotations[ann_id].image_id != ref.image_id:
                raise ValueError(
                    f"{path}: ref {ref.ref_id} needs annotation {ann_id} of image {ref.image_id}, which "
                    f"{instances_path} lacks; take both files from one source"
                )
            parts.append(annotations[ann_id])
        if len(parts) == 1:
            refs.append(Ref(ref.ref_id, parts[0].ann_id, ref.image_id, ref.split, ref.sentences))
            continue
        record = images[ref.image_id]
        try:
            made[ref.ann_id] = _union(ref, parts, record.height, record.width)
        except ValueError as error:
            raise ValueError(f"{instances_path}: ref {ref.ref_id}: {error}; fetch the file again") from error
        if not parts:
            empty.add(ref.ann_id)
        refs.append(ref)
    refuse_doubles((ref.ref_id for ref in refs), "ref_id", path)
    refuse_doubles((s.sent_id for ref in refs for s in ref.sentences), "sent_id", path)
    return ReferDataset(
        dataset,
        split_by,
        tuple(refs),
        images,
        {**annotations, **made},
        categories,
        instances_path,
        targetless=frozenset(empty),
    )


def _ref(entry: Any, path: Path) -> tuple[Ref, list[int]]:
    """A ref under a made-up annotation id, and the annotations that it means."""
    try:
        found = entry["ann_id"]
        wanted = [int(a) for a in (found if isinstance(found, list) else [found])]
        ref_id = int(entry["ref_id"])
        sentences = tuple(Sentence(int(s["sent_id"]), str(s["sent"])) for s in entry["sentences"])
        ref = Ref(ref_id, -(ref_id + 1), int(entry["image_id"]), str(entry["split"]), sentences)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{path} holds a ref that lacks a field ({error!r}); fetch it again") from error
    if not sentences or not all(s.text.strip() for s in sentences):
        raise ValueError(f"{path}: ref {ref_id} has no sentence, or an empty one; fetch it again")
    nothing = wanted == [-1]
    if not wanted or (-1 in wanted and not nothing) or bool(entry.get("no_target", nothing)) != nothing:
        raise ValueError(f"{path}: ref {ref_id} means objects and nothing at once; fetch it again")
    return ref, [] if nothing else list(dict.fromkeys(wanted))


def _union(ref: Ref, parts: list[Annotation], height: int, width: int) -> Annotation:
    if not parts:
        blank = {"size": [height, width], "counts": [height * width]}
        return Annotation(ref.ann_id, ref.image_id, _NOTHING, (0.0, 0.0, 0.0, 0.0), blank)
    rle = coco_mask.merge([to_rle(p.segmentation, height, width) for p in parts], intersect=False)
    x, y, w, h = (float(v) for v in coco_mask.toBbox(rle))
    return Annotation(ref.ann_id, ref.image_id, _SEVERAL, (x, y, w, h), rle)
