"""Qualitative overlays: photograph, superpixels, ground truth and predictions side by side.

Examples are picked by rank, not by eye: the best, the middle and the worst of one run, so that
failures are always shown. Photographs are licensed apart from this project: overlays of them are
looked at, never committed (:mod:`harness.reporting.snapshot` refuses them).
"""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from harness.images import read_rgb
from harness.reporting.style import INK, MUTED, house_style, save
from harness.scoring.metrics import EXPRESSION_KEY, expression_iou, read_scores
from harness.scoring.rle import run_lengths

__all__ = ["Example", "overlay_figure", "overlays_stage", "pick_examples"]

TRUTH, PREDICTION, EDGE = "#00B85C", "#E7298A", "#FFFFFF"  # green and magenta stay apart for everyone


@dataclass(frozen=True)
class Example:
    """One expression to draw.

    Attributes:
        image: ``[h, w, 3]`` uint8.
        sentence: the expression.
        truth: ``[h, w]`` bool; ``None`` where it is not known, which leaves its column out.
        predictions: ``[h, w]`` bool by the name to print, in the order of the columns.
        superpixels: ``[k, h, w]`` bool, may overlap; ``None`` leaves the column out.
        rank: ``best``, ``median`` or ``worst``, printed at the left.
    """

    image: NDArray[np.uint8]
    sentence: str
    truth: NDArray[np.bool_] | None = None
    predictions: Mapping[str, NDArray[np.bool_]] = field(default_factory=dict)
    superpixels: NDArray[np.bool_] | None = None
    rank: str = ""

    def __post_init__(self) -> None:
        """Refuse masks of another size than the image."""
        size = self.image.shape[:2]
        for mask in (self.truth, self.superpixels, *self.predictions.values()):
            if mask is not None and mask.shape[-2:] != size:
                raise ValueError(
                    f"a mask of {mask.shape[-2:]} does not fit the image of {size} of '{self.sentence}'"
                )


def mask_iou(a: NDArray[np.bool_], b: NDArray[np.bool_]) -> float:
    """IoU of two masks; 1 where both are empty."""
    union = int(np.logical_or(a, b).sum())
    return 1.0 if union == 0 else int(np.logical_and(a, b).sum()) / union


def pick_examples(scores: pd.DataFrame, per_rank: int = 2) -> pd.DataFrame:
    """The best, the middle and the worst expressions of one run, each from another image.

    Args:
        scores: score rows of one run.
        per_rank: examples of each rank.

    Returns:
        Up to ``3 * per_rank`` rows with ``rank`` and ``iou``; ties are broken by the key, so the same
        rows give the same examples.
    """
    rows = scores.assign(iou=expression_iou(scores)).sort_values(
        ["iou", *EXPRESSION_KEY], ascending=[False, *(True for _ in EXPRESSION_KEY)], kind="stable"
    )
    rows = rows.reset_index(drop=True)
    middle = (rows["iou"] - rows["iou"].median()).abs().sort_values(kind="stable").index
    used: set[int] = set()
    parts = []
    for rank, order in (("best", rows.index), ("worst", rows.index[::-1]), ("median", middle)):
        taken: list[int] = []
        for place in order:
            image = int(rows.loc[place, "image_id"])  # type: ignore[arg-type]
            if image not in used and len(taken) < per_rank:
                used.add(image)
                taken.append(place)
        parts.append(rows.loc[taken].assign(rank=rank))
    return pd.concat([parts[0], parts[2], parts[1]], ignore_index=True)


def _show(axes: Axes, image: NDArray[np.uint8]) -> None:
    axes.imshow(image, interpolation="nearest" if max(image.shape) < 256 else "antialiased")
    axes.set_xticks([])
    axes.set_yticks([])
    axes.grid(visible=False)
    for spine in axes.spines.values():
        spine.set_visible(False)


def _outline(axes: Axes, mask: NDArray[np.bool_], color: str, width: float) -> None:
    # A border of background lets an outline close where the mask meets the image's edge.
    padded = np.pad(mask.astype(float), 1)
    if mask.any():
        x, y = (np.arange(-1, side + 1) for side in mask.shape[::-1])
        axes.contour(x, y, padded, [0.5], colors=[color], linewidths=width)
        axes.set_xlim(-0.5, mask.shape[1] - 0.5)
        axes.set_ylim(mask.shape[0] - 0.5, -0.5)


def _tint(axes: Axes, mask: NDArray[np.bool_], color: str) -> None:
    layer = np.zeros((*mask.shape, 4))
    layer[..., :3] = to_rgb(color)
    layer[..., 3] = 0.45 * mask
    axes.imshow(layer, interpolation="nearest")
    _outline(axes, mask, color, 1.2)


def _superpixels(axes: Axes, masks: NDArray[np.bool_]) -> None:
    order = np.argsort([-int(m.sum()) for m in masks], kind="stable")
    palette = plt.get_cmap("tab20").colors  # type: ignore[attr-defined]
    for k, index in enumerate(order):
        layer = np.zeros((*masks.shape[1:], 4))
        layer[..., :3] = palette[k % len(palette)]
        layer[..., 3] = 0.22 * masks[index]
        axes.imshow(layer, interpolation="nearest")
    for index in order:
        _outline(axes, masks[index], EDGE, 0.7)


def _draw_prediction(axes: Axes, name: str, example: Example) -> None:
    mask, label = example.predictions[name], name
    _tint(axes, mask, PREDICTION)
    if example.truth is not None:
        _outline(axes, example.truth, TRUTH, 0.8)
        label = f"{name}\nIoU {100 * mask_iou(mask, example.truth):.1f} %"
    axes.set_xlabel(label, fontsize=7)


def overlay_figure(examples: Sequence[Example], out_png: Path | str, out_pdf: Path | str) -> None:
    """Draw a line an example: image, superpixels, ground truth, each prediction with its IoU under it.

    Superpixels and ground truth are left out where no example has them.

    Args:
        examples: what to draw; all with the same predictions, so that columns line up.
        out_png: written at 200 dpi.
        out_pdf: the same figure.

    Raises:
        ValueError: there is no example, or the columns differ.
    """
    if not examples:
        raise ValueError("there is no example to draw; score at least one expression first")
    names = list(examples[0].predictions)
    if any(list(e.predictions) != names for e in examples):
        raise ValueError("all examples of a figure need the same predictions")
    with_superpixels = any(e.superpixels is not None for e in examples)
    with_truth = any(e.truth is not None for e in examples)
    heads = 1 + with_superpixels + with_truth + len(names)
    png, pdf = Path(out_png), Path(out_pdf)
    if png.parent != pdf.parent or png.stem != pdf.stem:
        raise ValueError("an overlay's PNG and PDF must lie side by side under one name")
    with house_style():
        heights = [1.55 * e.image.shape[0] / e.image.shape[1] + 0.55 for e in examples]
        size = (1.6 * heads + 0.2, sum(heights))
        figure, grid = plt.subplots(len(examples), heads, figsize=size, squeeze=False, height_ratios=heights)
        for line, example in zip(grid, examples, strict=True):
            for axes in line:
                _show(axes, example.image)
            wrapped = textwrap.shorten(example.sentence, 34 * heads, placeholder=" …")
            line[0].set_title(" ", fontsize=8)  # keeps the height; the sentence must not widen the column
            said = f"“{wrapped}”" if wrapped else ""
            line[0].text(0, 1.04, said, color=INK, transform=line[0].transAxes).set_in_layout(False)
            line[0].set_ylabel(example.rank, color=MUTED, fontsize=7.5)
            line[0].set_xlabel("image", fontsize=7)
            if example.superpixels is not None:
                _superpixels(line[1], example.superpixels)
                line[1].set_xlabel(f"{len(example.superpixels)} superpixels", fontsize=7)
            if example.truth is not None:
                _tint(line[1 + with_superpixels], example.truth, TRUTH)
                line[1 + with_superpixels].set_xlabel("ground truth", fontsize=7)
            for axes, name in zip(line[heads - len(names) :], names, strict=True):
                _draw_prediction(axes, name, example)
        truth = "Green: ground truth, outlined on predictions. " if with_truth else ""
        key = f"{truth}Magenta: prediction."
        if names:
            figure.supxlabel(key, fontsize=6.5, color=MUTED, x=0.01, ha="left")
        save(figure, png.parent, png.stem)


def _decode(counts: object, height: int, width: int) -> NDArray[np.bool_]:
    if counts is None or pd.isna(counts):  # type: ignore[call-overload]
        return np.zeros((height, width), bool)
    run_lengths(str(counts), height, width)
    return coco_mask.decode({"size": [height, width], "counts": str(counts).encode()}).astype(bool)


def _targets(prepared: Path) -> pd.DataFrame:
    """Sentence, mask and image path of every expression."""
    expressions = pd.read_parquet(prepared / "expressions.parquet")
    annotations = pd.read_parquet(prepared / "annotations.parquet")
    images = pd.read_parquet(prepared / "images.parquet")
    masks = annotations[["dataset", "ann_id", "rle", "height", "width"]]
    out = expressions[[*EXPRESSION_KEY, "ann_id", "image_id", "sentence"]].merge(
        masks, on=["dataset", "ann_id"]
    )
    return out.merge(images[["image_id", "path"]], on="image_id").drop(columns="image_id")


def overlays_stage(
    runs: Mapping[str, tuple[Path | str, Path | str]],
    prepared_dir: Path | str,
    image_root: Path | str,
    out_dir: Path | str,
    *,
    superpixels: Callable[[int], NDArray[np.bool_]] | None = None,
    per_rank: int = 2,
) -> list[Path]:
    """Draw one overlay figure of a study, ranked by its first run; what the workflow calls.

    Args:
        runs: ``(scores, predictions)`` parquet files by the name to print; the first run picks.
        prepared_dir: holds ``expressions``, ``annotations`` and ``images.parquet``.
        image_root: what ``images.parquet``'s ``path`` is relative to.
        out_dir: ``results/<study>/figures``.
        superpixels: gives the masks ``[k, h, w]`` of an ``image_id``, e.g. a store's method.
        per_rank: examples of each rank.

    Returns:
        ``overlays.png`` and ``overlays.pdf``.

    Raises:
        FileNotFoundError: an image is missing.
        ValueError: one cannot be read.
    """
    key = list(EXPRESSION_KEY)
    scores = read_scores([next(iter(runs.values()))[0]])
    picked = pick_examples(scores[scores["split"].ne("train")], per_rank)
    truth = _targets(Path(prepared_dir))
    guesses = {name: pd.read_parquet(file).set_index(key)["rle"] for name, (_, file) in runs.items()}
    examples = []
    for row in picked.merge(truth, on=key, how="left").to_dict("records"):
        size = int(row["height"]), int(row["width"])
        place = tuple(row[k] for k in key)
        examples.append(
            Example(
                image=read_rgb(Path(image_root) / str(row["path"])),
                sentence=str(row["sentence"]),
                truth=_decode(row["rle"], *size),
                predictions={
                    name: _decode(codes.loc[place] if place in codes.index else None, *size)
                    for name, codes in guesses.items()
                },
                superpixels=None if superpixels is None else superpixels(int(row["image_id"])),
                rank=str(row["rank"]),
            )
        )
    png, pdf = Path(out_dir) / "overlays.png", Path(out_dir) / "overlays.pdf"
    overlay_figure(examples, png, pdf)
    return [png, pdf]
