"""Which expressions a protocol scores, and what other evaluations make of the same predictions."""

import json
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from harness.config import ProtocolConfig
from harness.scoring.metrics import SCORE_COLUMNS, check_scores
from harness.scoring.protocols import protocol_table, sum_polygons
from harness.scoring.scored import sample_expressions, select


def expressions(counts, dataset="toy", split="val") -> pd.DataFrame:
    rows = [
        {"dataset": dataset, "split": split, "ref_id": 100 * image + k // 2, "sent_id": 1000 * image + k,
         "image_id": image}
        for image, count in enumerate(counts)
        for k in range(count)
    ]  # fmt: skip
    return pd.DataFrame(rows)


def score_rows(rows, inter, union, **more) -> pd.DataFrame:
    """Scores whose prediction is the intersection alone."""
    values = {
        "study": "s", "projector": "p", "variant": "base", "budget": "auto", "seed": 0, "protocol": "full",
        "visual_tokens": 1, "seg_emitted": True, "status": "ok", "intersection": inter, "union": union,
        "gt_area": union, "pred_area": inter, **more,
    }  # fmt: skip
    return check_scores(rows.assign(**values)[list(SCORE_COLUMNS)])


def test_at_most_three_an_image_and_every_expression_of_the_others():
    rows = expressions([1, 2, 3, 4, 9])
    drawn = sample_expressions(rows, 0)
    assert drawn.groupby("image_id").size().tolist() == [1, 2, 3, 3, 3]
    assert drawn.index.is_monotonic_increasing and set(drawn["sent_id"]) <= set(rows["sent_id"])


def test_a_draw_hangs_on_the_seed_and_not_on_the_order_or_on_other_splits():
    rows = expressions([9] * 40)
    drawn = set(sample_expressions(rows, 3)["sent_id"])
    shuffled = rows.sample(frac=1, random_state=0).reset_index(drop=True)
    assert set(sample_expressions(shuffled, 3)["sent_id"]) == drawn
    other = expressions([9] * 40, split="testA").assign(sent_id=lambda r: r["sent_id"] + 10**6)
    both = sample_expressions(pd.concat([other, rows], ignore_index=True), 3)
    assert set(both.loc[both["split"] == "val", "sent_id"]) == drawn
    assert set(sample_expressions(rows, 4)["sent_id"]) != drawn


def test_every_expression_is_drawn_equally_often():
    rows = expressions([6])
    times = np.zeros(6)
    for seed in range(600):
        times[sample_expressions(rows, seed).index] += 1
    assert times.sum() == 1800 and abs(times - 300).max() < 60  # five standard deviations


def test_the_full_protocol_scores_all_and_labels_tell_protocols_apart():
    rows = expressions([9, 2])
    assert select(rows, ProtocolConfig()) is rows
    assert len(select(rows, ProtocolConfig(name="glamm-3sent"))) == 5
    labels = [
        ProtocolConfig(**values).label
        for values in ({}, {"decode": "generate"}, {"name": "glamm-3sent", "sample_seed": 4})
    ]
    assert labels == ["full", "full.generate", "glamm-3sent.s4"]


def view(table, name) -> pd.Series:
    return table.set_index("protocol").loc[name]


def test_published_habits_by_hand():
    # Image 0: IoU 1.0; image 1: IoU 0.5, 0.5 and no [SEG]; unions 10, 20, 20 and 30 pixels.
    rows = score_rows(
        expressions([1, 3]), [10, 10, 10, 0], [10, 20, 20, 30], seg_emitted=[True, True, True, False]
    )
    table = protocol_table(rows)
    full, image, skipped = (
        view(table, n) for n in ("full", "mllmseg-per-image-mean", "sa2va-skipped-failures")
    )
    assert (full.giou, full.ciou) == (pytest.approx(0.5), pytest.approx(30 / 80))
    assert (image.giou, image.ciou) == (pytest.approx((1 + 1 / 3) / 2), pytest.approx(30 / 80))
    assert (skipped.giou, skipped.ciou) == (pytest.approx(0.5), pytest.approx(30 / 50))
    assert view(table, "glamm-3sent").giou_sd == 0  # three an image at most: nothing to draw
    assert list(table["reruns"]) == [1, 1, 1, 5]


def test_reruns_have_the_spread_of_drawing_without_replacement():
    # 400 images of 6 expressions, half of each image right: Var of a mean of 3 of 6 is S^2 / 3 * (1 - 3/6).
    iou = np.tile([1, 1, 1, 0, 0, 0], 400)
    rows = score_rows(expressions([6] * 400), iou * 10, 10)
    exact = np.sqrt(0.3 / 3 * 0.5 / 400)
    found = view(protocol_table(rows), "glamm-3sent")
    assert found.n_expressions == 1200 and found.reruns == 5
    assert abs(found.giou - 0.5) < 4 * exact and 0.2 * exact < found.giou_sd < 2.5 * exact


def test_seeds_are_averaged_and_rows_of_a_sampling_protocol_are_left_out():
    one = score_rows(expressions([2]), [10, 0], 10)
    two = score_rows(expressions([2]), [10, 10], 10, seed=1)
    drawn = score_rows(expressions([2]), [0, 0], 10, seed=2, protocol="glamm-3sent.s0")
    table = protocol_table(pd.concat([one, two, drawn], ignore_index=True))
    assert view(table, "full")[["giou", "seed_count"]].tolist() == [0.75, 2]
    spoken = protocol_table(one.assign(protocol="full.generate"))
    assert "sa2va-skipped-failures.generate" in set(spoken["protocol"])


def test_summed_polygons_are_no_target_where_they_overlap():
    # Two 10 x 10 squares that share 5 x 10 pixels; the prediction is exactly their union.
    layers = np.zeros((2, 30, 40), np.uint8)
    layers[0, :10, :10] = layers[1, :10, 5:15] = 1
    union, single = layers.max(0), (layers.sum(0) == 1).astype(np.uint8)

    def code(mask):
        return coco_mask.encode(np.asfortranarray(mask))["counts"].decode()

    rows = expressions([2]).assign(ann_id=[7, 8])
    annotations = pd.DataFrame(
        {"dataset": "toy", "ann_id": [7, 8], "rle": code(union), "rle_single": [code(single), ""]}
    )
    scores = score_rows(expressions([2]), 150, 150)
    predictions = expressions([2]).assign(rle=code(union), height=30, width=40, status="ok")
    summed = check_scores(sum_polygons(scores, predictions, rows, annotations))
    # As the histogram of two classes counts: 100 target pixels, 150 predicted, 100 of them right.
    assert summed[["intersection", "gt_area", "union"]].values.tolist() == [[100, 100, 150], [150, 150, 150]]
    table = protocol_table(scores, summed)
    assert view(table, "lisa-summed-polygons").giou == pytest.approx((100 / 150 + 1) / 2)
    assert view(table, "full").giou == 1.0
    with pytest.raises(ValueError, match="run the prepare stage again"):
        sum_polygons(scores, predictions, rows, annotations.drop(columns="rle_single"))


@pytest.mark.parametrize(
    ("split", "images", "all_of_them"), [("val", 1500, 10_834), ("testA", 750, 5_657), ("testB", 750, 5_095)]
)
def test_the_published_habit_scores_less_than_half_of_refcoco(split, images, all_of_them):
    folder = os.environ.get("RIS_TEXT_DATA")
    if not folder:
        pytest.skip("RIS_TEXT_DATA does not name the folder of RefCOCO expressions")
    lines = (Path(folder) / f"refcoco_unc_{split}.jsonl").read_text().splitlines()
    rows = pd.DataFrame(map(json.loads, lines))
    assert len(rows) == all_of_them and rows["image_id"].nunique() == images
    drawn = sample_expressions(rows, 0)
    assert len(drawn) == rows.groupby("image_id").size().clip(upper=3).sum() <= 3 * images
    assert len(drawn) < len(rows) / 2
