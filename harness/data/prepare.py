"""REFER files to the prepared tables, every image opened and every mask decoded once."""

from __future__ import annotations

import hashlib
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from harness.data.options import ReferSet
from harness.data.phenomena import PHENOMENA, tag_phenomenon
from harness.data.readers import read_dataset
from harness.data.refer import Annotation, ImageRecord, ReferDataset, single_cover, to_rle
from harness.data.tables import Tables, check_leakage, is_held_out, load_tables, write_tables
from harness.files import sha256_file

__all__ = ["Tables", "check_leakage", "index_images", "load_tables", "prepare"]


def prepare(
    refer_root: Path | str,
    datasets: Sequence[ReferSet],
    out_dir: Path | str,
    *,
    image_dir: str = "images",
    image_root: str | None = None,
    relative_to: Path | str | None = None,
    train_pool: str = "joint",
    progress: bool = True,
) -> dict[str, Any]:
    """Read REFER datasets; write images, annotations and expressions (parquet), and ``summary.json``.

    Args:
        refer_root: folder of the datasets' folders.
        datasets: which, and which of their splits.
        out_dir: where the tables go.
        image_dir: folder below ``refer_root`` whose tree holds the image files.
        image_root: how the summary names the folder that image paths are relative to; may hold
            ``${NAME}``; if relative, it is meant from ``out_dir``. Default: ``refer_root`` resolved.
        relative_to: that folder itself; default ``refer_root``.
        train_pool: ``clean`` drops train images that stand in a held-out split of any of the datasets, by id
            also in splits that are not prepared, by bytes in those that are; ``joint`` keeps them.
        progress: show progress bars on stderr.

    Returns:
        The summary.

    Raises:
        ValueError: see ``read_refer``; also a missing or truncated image, an image of another size than
            listed, a referred mask of zero area, a split that is not there.
    """
    refer_root = Path(refer_root)
    read = [(s, read_dataset(refer_root, s)) for s in datasets]
    rows = [row for part, data in read for row in _expression_rows(part, data)]
    if not rows:
        raise ValueError(f"{refer_root}: no splits are asked for; name at least one")
    expressions = pd.DataFrame(rows)
    records = _records(read, set(expressions["image_id"]))
    files = index_images(refer_root / image_dir)
    for part in datasets:
        if part.format == "reasonseg":
            own = index_images(refer_root / part.place).values()
            files |= {f"{path.parent.name}/{path.name}": [path] for paths in own for path in paths}
    base = Path(relative_to) if relative_to is not None else refer_root
    images = pd.DataFrame(
        _image_row(record, files, refer_root / image_dir, base)
        for record in tqdm(records, desc="images", unit="image", disable=not progress)
    )
    expressions, dropped = _clean(expressions, images, read, train_pool)
    images = images[images["image_id"].isin(set(expressions["image_id"]))].reset_index(drop=True)
    annotations, empty = _annotations(read, expressions, progress)
    kin = (
        annotations.groupby(["dataset", "image_id", "category"])["ann_id"].size().rename("kin").reset_index()
    )
    expressions = expressions.merge(
        annotations[["dataset", "ann_id", "category"]], on=["dataset", "ann_id"], validate="many_to_one"
    ).merge(kin, on=["dataset", "image_id", "category"])
    # An annotation with a negative id is made up of several, or of none: it has no kin.
    expressions["distractors"] = (expressions.pop("kin") - 1).where(expressions["ann_id"] >= 0, 0)
    expressions["phenomenon"] = expressions["sentence"].map(tag_phenomenon)
    expressions = expressions.sort_values(["dataset", "split", "sent_id"], kind="stable", ignore_index=True)
    frames = {"images": images, "annotations": annotations, "expressions": expressions}
    leaks = check_leakage(Tables(images, annotations, expressions))
    summary = {
        "image_root": image_root if image_root is not None else str(refer_root.resolve()),
        "content": _content(frames.values()),
        "datasets": _counts(expressions),
        "images": len(images),
        "annotations": len(annotations),
        "annotations_without_pixels": empty,
        "train_pool": {"mode": train_pool, **dropped, "leaking_images": int(leaks["image_id"].nunique())},
    }
    write_tables(out_dir, frames, summary)
    return summary


def _content(frames: Iterable[pd.DataFrame]) -> str:
    """What tells photographs, masks and expressions from others, wherever they lie."""
    found = hashlib.sha256()
    for frame in frames:
        kept = frame.drop(columns="path", errors="ignore")
        found.update(pd.util.hash_pandas_object(kept, index=False).to_numpy().tobytes())
    return found.hexdigest()[:12]


def index_images(folder: Path | str) -> dict[str, list[Path]]:
    """Every file below a folder by its name; a name may stand in several subfolders."""
    found: dict[str, list[Path]] = {}
    for where, folders, names in os.walk(folder):
        folders.sort()
        for name in names:
            found.setdefault(name, []).append(Path(where) / name)
    return found


def _expression_rows(part: ReferSet, data: ReferDataset) -> Iterable[dict[str, Any]]:
    for split in part.splits:
        for ref in data.of_split(split):
            for sentence in ref.sentences:
                yield {
                    "dataset": part.name,
                    "split": split,
                    "ref_id": ref.ref_id,
                    "sent_id": sentence.sent_id,
                    "ann_id": ref.ann_id,
                    "image_id": ref.image_id,
                    "sentence": sentence.text,
                }


def _records(read: list[tuple[ReferSet, ReferDataset]], wanted: set[int]) -> list[ImageRecord]:
    """The listed images, which datasets must agree on."""
    found: dict[int, ImageRecord] = {}
    for _, data in read:
        for image_id in wanted & data.images.keys():
            record = data.images[image_id]
            if found.setdefault(image_id, record) != record:
                raise ValueError(
                    f"{data.instances_path} lists image {image_id} as {record.file_name}, another dataset as "
                    f"{found[image_id].file_name}; the datasets do not belong together: prepare them apart"
                )
    return [found[i] for i in sorted(found)]


def _image_row(record: ImageRecord, files: dict[str, list[Path]], folder: Path, base: Path) -> dict[str, Any]:
    paths = files.get(record.file_name, [])
    if not paths:
        raise ValueError(f"image {record.file_name} is nowhere below {folder}; put it there")
    hashes = {sha256_file(path) for path in paths}
    if len(hashes) > 1:
        raise ValueError(
            f"image {record.file_name} stands below {folder} with different contents; keep the right one"
        )
    try:
        with Image.open(paths[0]) as image:
            image.load()
            size = image.size
    except (OSError, SyntaxError) as error:
        raise ValueError(f"image {paths[0]} is truncated or no image ({error}); fetch it again") from error
    if size != (record.width, record.height):
        raise ValueError(
            f"image {paths[0]} is {size[0]} x {size[1]}, but listed as {record.width} x {record.height}; "
            "masks would not fit: fetch the original"
        )
    return {
        "image_id": record.image_id,
        "path": Path(os.path.relpath(paths[0], base)).as_posix(),
        "width": record.width,
        "height": record.height,
        "sha256": hashes.pop(),
    }


def _clean(
    expressions: pd.DataFrame, images: pd.DataFrame, read: list[tuple[ReferSet, ReferDataset]], mode: str
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """Drop train rows on held-out images, if asked, and count them either way."""
    held_ids = {ref.image_id for _, data in read for ref in data.refs if is_held_out(ref.split)}
    bytes_of = images.set_index("image_id")["sha256"]
    held_bytes = set(bytes_of[bytes_of.index.isin(held_ids)])
    leaks = (expressions["split"] == "train") & (
        expressions["image_id"].isin(held_ids) | expressions["image_id"].map(bytes_of).isin(held_bytes)
    )
    by_dataset = {
        str(name): {"images": int(rows["image_id"].nunique()), "expressions": len(rows)}
        for name, rows in expressions[leaks].groupby("dataset")
    }
    images_lost, lost = int(expressions.loc[leaks, "image_id"].nunique()), int(leaks.sum())
    shared = {"images": images_lost, "expressions": lost, "by_dataset": by_dataset}
    if mode != "clean":
        return expressions, {"dropped_images": 0, "dropped_expressions": 0, "held_out_too": shared}
    dropped = {
        "dropped_images": images_lost,
        "dropped_expressions": lost,
        "dropped_by_dataset": by_dataset,
        "held_out_too": shared,
    }
    return expressions[~leaks].reset_index(drop=True), dropped


def _annotations(
    read: list[tuple[ReferSet, ReferDataset]], expressions: pd.DataFrame, progress: bool
) -> tuple[pd.DataFrame, int]:
    """All annotations of the images a dataset uses, and how many were left out for having no pixel."""
    rows, empty = [], 0
    for part, data in read:
        mine = expressions[expressions["dataset"] == part.name]
        used, referred = set(mine["image_id"]), set(mine["ann_id"])
        todo = [a for a in data.annotations.values() if a.image_id in used]
        for annotation in tqdm(todo, desc=f"masks of {part.name}", unit="mask", disable=not progress):
            row = _annotation_row(annotation, part.name, data)
            if row["area"] > 0 or annotation.ann_id in data.targetless & referred:
                rows.append(row)
            elif annotation.ann_id in referred:
                raise ValueError(
                    f"{data.instances_path}: annotation {annotation.ann_id} is referred to but its mask has "
                    "no pixel; fetch the file again or take its refs out"
                )
            else:
                empty += 1
    return pd.DataFrame(rows), empty


def _annotation_row(annotation: Annotation, dataset: str, data: ReferDataset) -> dict[str, Any]:
    image = data.images[annotation.image_id]
    try:
        rle = to_rle(annotation.segmentation, image.height, image.width)
    except ValueError as error:
        raise ValueError(
            f"{data.instances_path}: annotation {annotation.ann_id}: {error}; fetch the file again"
        ) from error
    x, y, w, h = annotation.box
    return {
        "dataset": dataset,
        "ann_id": annotation.ann_id,
        "image_id": annotation.image_id,
        "category": data.categories[annotation.category_id],
        "caption": annotation.caption,
        "area": int(coco_mask.area(rle)),
        "x": x,
        "y": y,
        "w": w,
        "h": h,
        "rle": rle["counts"].decode("ascii"),
        "rle_single": _text(single_cover(annotation.segmentation, image.height, image.width)),
        "rle_ignored": _text(data.ignored.get(annotation.ann_id)),
        "height": image.height,
        "width": image.width,
    }


def _text(rle: dict[str, Any] | None) -> str:
    return "" if rle is None else rle["counts"].decode("ascii")


def _counts(expressions: pd.DataFrame) -> dict[str, Any]:
    counts: dict[str, Any] = {}
    for (dataset, split), rows in expressions.groupby(["dataset", "split"]):
        tags = Counter(rows["phenomenon"])
        counts.setdefault(str(dataset), {})[str(split)] = {
            "images": int(rows["image_id"].nunique()),
            "refs": int(rows["ref_id"].nunique()),
            "expressions": len(rows),
            **{tag: tags[tag] for tag in PHENOMENA},
        }
    return counts
