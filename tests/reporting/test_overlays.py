"""Overlays: deterministic picks that include failures; masks land where they should."""

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from harness.reporting.overlays import Example, mask_iou, overlay_figure, overlays_stage, pick_examples


def test_picks_best_median_worst_from_different_images(made_up):
    scores = pd.read_parquet(made_up["scores"][0])
    picked = pick_examples(scores, per_rank=2)
    iou = scores["intersection"] / scores["union"]
    assert picked["rank"].tolist() == ["best"] * 2 + ["median"] * 2 + ["worst"] * 2
    assert picked["iou"].iloc[0] == iou.max() and picked["iou"].iloc[-2] == iou.min()
    assert abs(picked["iou"].iloc[2] - iou.median()) < 0.01
    assert picked["image_id"].is_unique
    pd.testing.assert_frame_equal(picked, pick_examples(scores.sample(frac=1, random_state=2), per_rank=2))


def test_few_expressions_are_all_shown_once(made_up):
    scores = pd.read_parquet(made_up["scores"][0]).drop_duplicates("image_id").head(2)
    assert len(pick_examples(scores, per_rank=2)) == 2


def test_iou_of_masks():
    a, b = np.zeros((4, 4), bool), np.zeros((4, 4), bool)
    assert mask_iou(a, b) == 1
    a[:2], b[1:3] = True, True
    assert mask_iou(a, b) == pytest.approx(4 / 12)


def test_prediction_is_tinted_where_it_lies(tmp_path):
    grey = np.full((64, 64, 3), 128, np.uint8)
    mask = np.zeros((64, 64), bool)
    mask[:, 32:] = True
    nothing = np.zeros((64, 64), bool)
    example = Example(grey, "right half", mask, {"run": mask, "blank": nothing}, mask[None], "best")
    overlay_figure([example], tmp_path / "o.png", tmp_path / "o.pdf")
    pixels = np.asarray(Image.open(tmp_path / "o.png").convert("RGB")).astype(int)
    magenta = (pixels[..., 0] - pixels[..., 1] > 40) & (pixels[..., 2] - pixels[..., 1] > 20)
    columns = np.flatnonzero(magenta.sum(0) > 20)
    width = pixels.shape[1] / 5  # image, superpixels, truth, run, blank
    assert len(columns) and columns.min() > 3.3 * width and columns.max() < 4.1 * width
    assert (tmp_path / "o.pdf").read_bytes().startswith(b"%PDF")


def test_masks_of_another_size_are_refused():
    with pytest.raises(ValueError, match="does not fit the image .* of 'cup'"):
        Example(np.zeros((4, 4, 3), np.uint8), "cup", np.zeros((5, 4), bool))
    with pytest.raises(ValueError, match="no example"):
        overlay_figure([], "a.png", "a.pdf")


def test_stage_reads_a_study(made_up, tmp_path):
    prepared = tmp_path / "prepared"
    prepared.mkdir()
    for name in ("expressions", "annotations"):
        pd.read_parquet(made_up["prepared"] / f"{name}.parquet").to_parquet(prepared / f"{name}.parquet")
    scores = pd.read_parquet(made_up["scores"][0])
    ids = sorted(set(scores["image_id"]))
    for image in ids:
        Image.fromarray(np.full((96, 96, 3), image % 200, np.uint8)).save(tmp_path / f"{image}.png")
    images = pd.DataFrame({"image_id": ids, "path": [f"{i}.png" for i in ids]})
    images.to_parquet(prepared / "images.parquet")
    guess = np.zeros((96, 96), np.uint8, order="F")
    guess[10:50, 10:50] = 1
    scores["rle"] = coco_mask.encode(guess)["counts"].decode()
    scores.loc[scores.index[::2], "rle"] = None
    scores.to_parquet(tmp_path / "predictions.parquet")
    runs = {"dense": (made_up["scores"][0], tmp_path / "predictions.parquet")}
    asked = []

    def superpixels(image_id):
        asked.append(image_id)
        return np.stack([guess.astype(bool), ~guess.astype(bool)])

    written = overlays_stage(runs, prepared, tmp_path, tmp_path / "f", superpixels=superpixels, per_rank=1)
    assert [p.name for p in written] == ["overlays.png", "overlays.pdf"] and all(p.is_file() for p in written)
    assert len(asked) == 3
    (tmp_path / f"{asked[0]}.png").write_bytes(b"cut off")
    with pytest.raises(ValueError, match=f"{asked[0]}.png is truncated or no image"):
        overlays_stage(runs, prepared, tmp_path, tmp_path / "f", per_rank=1)
