"""How far the published habit of scoring three expressions an image moves a score by itself.

The images, their expressions and boxes are real; what a model would score on them is drawn: it means the
right object with a given probability, for all expressions of an object alike or for each by itself, and
else another object of the same photograph, whose box overlap it then scores.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from harness.draws import generator_from_names
from harness.scoring.protocols import RERUNS
from harness.scoring.scored import SENTENCES_PER_IMAGE

__all__ = ["count_protocols", "draw_scores", "exact_spread", "leakage", "read_texts", "sampling_study"]

Floats = NDArray[np.float64]
_COLUMNS = ["dataset", "split", "image_id", "ref_id", "sent_id", "bbox_xyxy_int"]
# IoU of a mask on the right object: Beta(12, 2), mean 0.86, as a model of 0.80 gIoU needs.
_RIGHT = (12.0, 2.0)


def read_texts(folder: Path | str) -> pd.DataFrame:
    """The expressions of every ``*.jsonl`` of a folder that has refs, sentences and boxes.

    Returns:
        ``dataset``, ``split``, ``image_id``, ``ref_id``, ``sent_id``, ``x1``, ``y1``, ``x2``, ``y2``.

    Raises:
        ValueError: no file has them.
    """
    frames = []
    for path in sorted(Path(folder).glob("*.jsonl")):
        frame = pd.read_json(path, lines=True)
        if set(_COLUMNS) <= set(frame):
            frames.append(frame[_COLUMNS])
    if not frames:
        raise ValueError(f"{folder} holds no *.jsonl with {', '.join(_COLUMNS)}; name another folder")
    rows = pd.concat(frames, ignore_index=True)
    boxes = pd.DataFrame(rows.pop("bbox_xyxy_int").tolist(), columns=["x1", "y1", "x2", "y2"])
    return pd.concat([rows, boxes.astype(float)], axis=1)


def count_protocols(rows: pd.DataFrame) -> pd.DataFrame:
    """What each protocol scores of each split.

    Returns:
        ``dataset``, ``split``, ``protocol``, ``n_images``, ``n_expressions``, ``share`` (of all), and
        ``conversations``: one an expression, or one an image.
    """
    out = []
    for (dataset, split), part in rows.groupby(["dataset", "split"], sort=True):
        sizes = part.groupby("image_id").size()
        drawn = int(sizes.clip(upper=SENTENCES_PER_IMAGE).sum())
        for name, count, talks in (("full", len(part), len(part)), ("glamm-3sent", drawn, len(sizes))):
            out.append(
                {
                    "dataset": dataset, "split": split, "protocol": name, "n_images": len(sizes),
                    "n_expressions": count, "share": count / len(part), "conversations": talks,
                }
            )  # fmt: skip
    return pd.DataFrame(out)


def draw_scores(rows: pd.DataFrame, accuracy: float, by_object: bool, seed: int = 0) -> tuple[Floats, Floats]:
    """Intersections and unions ``[n]`` in pixels that a model of this accuracy could have on ``rows``.

    Args:
        rows: one split, see :func:`read_texts`.
        accuracy: share of expressions whose object it finds.
        by_object: whether it finds an object for all of its expressions or for none.
        seed: of the draw.
    """
    rng = generator_from_names("sampling", accuracy, by_object, seed, *rows[["dataset", "split"]].iloc[0])
    objects = rows.drop_duplicates("ref_id").reset_index(drop=True)
    mine = pd.Index(objects["ref_id"]).get_indexer(rows["ref_id"])
    image = objects["image_id"].to_numpy()
    order = np.argsort(image, kind="stable")
    start = np.searchsorted(image[order], image)
    count = np.searchsorted(image[order], image, side="right") - start
    place = np.empty(len(objects), int)
    place[order] = np.arange(len(objects)) - start[order]
    # Another object of the same photograph, each alike.
    step = 1 + np.floor(rng.random(len(rows)) * np.maximum(count[mine] - 1, 0)).astype(int)
    other = order[start[mine] + (place[mine] + step) % count[mine]]
    boxes = objects[["x1", "y1", "x2", "y2"]].to_numpy()
    area = np.prod(np.maximum(boxes[:, 2:] - boxes[:, :2], 1), axis=1)
    low, high = np.maximum(boxes[mine, :2], boxes[other, :2]), np.minimum(boxes[mine, 2:], boxes[other, 2:])
    shared = np.where(count[mine] > 1, np.prod(np.maximum(high - low, 0), axis=1), 0.0)
    luck = rng.random(len(objects))[mine] if by_object else rng.random(len(rows))
    right = luck < accuracy
    iou = rng.beta(*_RIGHT, len(rows))
    # A mask as large as its object with IoU x shares 2x / (1 + x) of it.
    hit = area[mine] * 2 * iou / (1 + iou)
    inter = np.where(right, hit, shared)
    union = area[mine] + np.where(right, area[mine], area[other]) - inter
    return inter, union


def exact_spread(iou: Floats, image_id: NDArray[Any]) -> float:
    """Standard deviation of gIoU over reruns of the draw, by the theory of drawing without replacement."""
    groups = pd.Series(iou).groupby(np.asarray(image_id))
    size, variance = groups.size().to_numpy(), groups.var(ddof=1).fillna(0.0).to_numpy()
    drawn = np.minimum(size, SENTENCES_PER_IMAGE)
    return float(np.sqrt((drawn * (1 - drawn / size) * variance).sum()) / drawn.sum())


def _reruns(inter: Floats, union: Floats, image_id: NDArray[Any], reruns: int, seed: str) -> Iterator[tuple]:
    order = np.argsort(image_id, kind="stable")
    inter, union = inter[order], union[order]
    codes = np.unique(image_id[order], return_inverse=True)[1]
    first = np.searchsorted(codes, codes)
    iou = inter / union
    rng = generator_from_names("reruns", seed)
    for _ in range(reruns):
        shuffled = np.lexsort((rng.random(len(codes)), codes))
        kept = shuffled[np.arange(len(codes)) - first < SENTENCES_PER_IMAGE]
        yield float(iou[kept].mean()), float(inter[kept].sum() / union[kept].sum())


def sampling_study(
    rows: pd.DataFrame, accuracies: tuple[float, ...] = (0.7, 0.9), reruns: int = 1000
) -> pd.DataFrame:
    """How far gIoU and cIoU move when nothing but the draw of expressions changes.

    Returns:
        One row a split, accuracy and kind of model: the value on all expressions (``_full``), the mean
        and standard deviation over reruns, ``giou_sd_exact`` by theory, ``giou_low`` and ``giou_high``
        (2.5 and 97.5 %), and ``giou_range_of_5``: the mean gap between best and worst of five reruns.
    """
    out = []
    for (dataset, split), part in rows.groupby(["dataset", "split"], sort=True):
        part = part.reset_index(drop=True)
        image_id = part["image_id"].to_numpy()
        for accuracy in accuracies:
            for by_object in (False, True):
                inter, union = draw_scores(part, accuracy, by_object)
                name = f"{dataset}/{split}/{accuracy}/{by_object}"
                runs = np.array(list(_reruns(inter, union, image_id, reruns, name)))
                giou, ciou = runs.T
                fives = giou[: len(giou) // RERUNS * RERUNS].reshape(-1, RERUNS)
                low, high = np.quantile(giou, [0.025, 0.975])
                out.append(
                    {
                        "dataset": dataset, "split": split, "accuracy": accuracy,
                        "right": "by object" if by_object else "by expression",
                        "giou_full": (inter / union).mean(), "giou_mean": giou.mean(),
                        "giou_sd": giou.std(ddof=1), "giou_sd_exact": exact_spread(inter / union, image_id),
                        "giou_low": low, "giou_high": high,
                        "giou_range_of_5": (fives.max(1) - fives.min(1)).mean(),
                        "ciou_full": inter.sum() / union.sum(), "ciou_mean": ciou.mean(),
                        "ciou_sd": ciou.std(ddof=1), "reruns": reruns,
                    }
                )  # fmt: skip
    return pd.DataFrame(out)


def leakage(folder: Path | str) -> pd.DataFrame:
    """Expressions for training whose photograph is held out by RefCOCO, RefCOCO+ or RefCOCOg.

    Args:
        folder: holds ``*_train_*.jsonl`` and ``*valtest_image_ids*.json``.

    Returns:
        One row a train file: its images and expressions, how many of them ``train_pool: clean`` drops,
        and what is left. Empty where there is no such file.
    """
    folder = Path(folder)
    held = {int(i) for path in folder.glob("*valtest_image_ids*.json") for i in json.loads(path.read_text())}
    out = []
    for path in sorted(folder.glob("*_train_*.jsonl")) if held else []:
        images = pd.read_json(path, lines=True)["image_id"]
        shared = images.isin(held)
        out.append(
            {
                "file": path.name, "images": images.nunique(), "expressions": len(images),
                "dropped_images": images[shared].nunique(), "dropped_expressions": int(shared.sum()),
                "held_out_images": len(held),
            }
        )  # fmt: skip
    columns = ["file", "images", "expressions", "dropped_images", "dropped_expressions", "held_out_images"]
    return pd.DataFrame(out, columns=columns)
