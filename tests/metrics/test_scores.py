"""Scores against hand counts and decoded masks; injected faults are refused by name."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocotools import mask as coco_mask

from harness.scoring.metrics import (
    SCORE_COLUMNS,
    expression_iou,
    read_scores,
    score_predictions,
    score_stage,
    summarise,
)
from harness.scoring.rle import overlap, run_lengths

# The hand counts of conftest.CASES: sent_id -> (I, U).
TRUTH = {100: (4, 4), 101: (2, 4), 102: (4, 12), 103: (0, 2), 104: (0, 16), 105: (12, 16)}


def test_pixel_counts_match_the_hand_count(study):
    scores = score_predictions(*study)
    assert tuple(scores.columns) == SCORE_COLUMNS
    got = {r.sent_id: (r.intersection, r.union) for r in scores.itertuples()}
    assert got == TRUTH
    assert all(str(scores[c].dtype) == "int64" for c in ("intersection", "union", "gt_area", "pred_area"))


def test_summary_matches_the_hand_count(study):
    table = summarise(score_predictions(*study), ["split"]).set_index("split")
    val, test = table.loc["val"], table.loc["testA"]
    assert val["giou"] == pytest.approx((1 + 1 / 2 + 1 / 3) / 3)
    assert val["ciou"] == pytest.approx(10 / 20)
    assert test["giou"] == pytest.approx((0 + 0 + 3 / 4) / 3)
    assert test["ciou"] == pytest.approx(12 / 34)
    # "above": an IoU of exactly one half is not above 0.5.
    assert list(val[["p50", "p60", "p90"]]) == pytest.approx([1 / 3, 1 / 3, 1 / 3])
    assert list(test[["p50", "p70", "p80"]]) == pytest.approx([1 / 3, 1 / 3, 0])
    assert (val["n_expressions"], val["n_images"]) == (3, 2)
    assert val["tokens_mean"] == pytest.approx((1 + 1 + 2) / 3)


def test_order_of_rows_changes_nothing(study):
    predictions, expressions, annotations = study
    mixed = score_predictions(
        predictions.sample(frac=1, random_state=3),
        expressions[::-1],
        annotations.sample(frac=1, random_state=1),
    )
    pd.testing.assert_frame_equal(mixed, score_predictions(*study))


def test_both_empty_scores_one_and_failure_scores_zero(study):
    predictions, expressions, annotations = study
    nothing = coco_mask.encode(np.zeros((4, 4), np.uint8, order="F"))["counts"].decode()
    annotations.loc[annotations.ann_id == 120, "rle"] = nothing
    predictions.loc[predictions.sent_id == 103, "rle"] = None
    scores = score_predictions(predictions, expressions, annotations).set_index("sent_id", drop=False)
    assert expression_iou(scores.loc[[103]])[0] == 1
    # of the two that mean something one is above; "nothing" earns gIoU and no P@X
    said = summarise(scores, ["split"]).set_index("split").loc["testA"]
    assert said["p50"] == 1 / 2 and said["giou"] == pytest.approx((1 + 0 + 3 / 4) / 3)
    predictions.loc[predictions.sent_id == 103, "status"] = "failed: out of memory"
    failed = score_predictions(predictions, expressions, annotations).set_index("sent_id", drop=False)
    assert expression_iou(failed.loc[[103]])[0] == 0
    table = summarise(failed, ["split"]).set_index("split")
    assert table.loc["testA", "status"] == "failed: 1 of 3 expressions (out of memory)"
    assert table.loc["val", "status"] == "ok"


def test_a_run_that_failed_throughout_has_no_figures(study):
    predictions, expressions, annotations = study
    predictions["status"] = "failed: out of memory"
    predictions["rle"] = None
    table = summarise(score_predictions(predictions, expressions, annotations), ["split"])
    assert table[["giou", "ciou", "p50", "tokens_mean"]].isna().all(axis=None)
    assert table["status"].str.startswith("failed: 3 of 3").all()


def test_a_missing_mask_joins_its_ground_truth_to_the_union(study):
    row = score_predictions(*study).set_index("sent_id").loc[104]
    assert (row["pred_area"], row["gt_area"], row["union"]) == (0, 16, 16)


@pytest.mark.parametrize("sent", [101, 105])
def test_a_missing_expression_is_named(study, sent):
    predictions, expressions, annotations = study
    with pytest.raises(ValueError, match=rf"lacks 1 of 6 expressions .*sent {sent}"):
        score_predictions(predictions[predictions.sent_id != sent], expressions, annotations)


def test_a_double_or_unknown_expression_is_named(study):
    predictions, expressions, annotations = study
    with pytest.raises(ValueError, match="twice.*sent 102"):
        score_predictions(
            pd.concat([predictions, predictions[predictions.sent_id == 102]]), expressions, annotations
        )
    with pytest.raises(ValueError, match="lack.*sent 102"):
        score_predictions(predictions, expressions[expressions.sent_id != 102], annotations)


def test_a_sampling_protocol_is_checked_against_what_it_drew(study):
    predictions, expressions, annotations = study
    predictions["protocol"] = "glamm-3sent-77"
    part = predictions[predictions.sent_id != 101]
    assert len(score_predictions(part, expressions, annotations)) == 5
    with pytest.raises(ValueError, match="lacks 1 of 6"):
        score_predictions(part, expressions, annotations, expected=expressions)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"height": 5}, "resolution.*sent 101"),
        ({"image_id": 9}, "another image.*sent 101"),
        ({"rle": "13"}, "sent 101: the mask of the prediction describes"),
        ({"rle": "\x07\x07"}, "sent 101: the mask of the prediction is not a run-length code"),
        ({"status": "skipped"}, "status must be"),
        ({"visual_tokens": 2.5}, "visual_tokens must hold whole numbers"),
        ({"seed": 1}, "must hold one run, but column seed"),
    ],
)
def test_wrong_rows_are_refused(study, change, message):
    predictions, expressions, annotations = study
    for column, value in change.items():
        predictions[column] = predictions[column].astype(object)
        predictions.loc[predictions.sent_id == 101, column] = value
    with pytest.raises(ValueError, match=message):
        score_predictions(predictions, expressions, annotations)


def test_missing_ground_truth_is_named(study):
    predictions, expressions, annotations = study
    with pytest.raises(ValueError, match="lacks the mask of toy/testA ref 12"):
        score_predictions(predictions, expressions, annotations[annotations.ann_id != 120])


def test_stage_writes_equal_bytes_twice(study, tmp_path):
    predictions, expressions, annotations = study
    expressions.to_parquet(tmp_path / "expressions.parquet")
    annotations.to_parquet(tmp_path / "annotations.parquet")
    predictions.to_parquet(tmp_path / "alpha.parquet")
    for name in ("one", "two"):
        score_stage(tmp_path / "alpha.parquet", tmp_path, tmp_path / f"{name}.parquet")
    assert (tmp_path / "one.parquet").read_bytes() == (tmp_path / "two.parquet").read_bytes()
    assert len(read_scores([tmp_path / "one.parquet"])) == 6
    with pytest.raises(ValueError, match="score files together scores an expression twice"):
        read_scores([tmp_path / "one.parquet", tmp_path / "two.parquet"])
    with pytest.raises(ValueError, match="no score files"):
        read_scores([])


@given(
    st.integers(1, 12).flatmap(
        lambda h: st.integers(1, 12).flatmap(
            lambda w: st.tuples(
                *[st.lists(st.booleans(), min_size=h * w, max_size=h * w)] * 2, st.just((h, w))
            )
        )
    )
)
def test_overlap_equals_counting_pixels(drawn):
    ours, theirs, (h, w) = drawn
    a, b = (np.array(m, bool).reshape(h, w) for m in (ours, theirs))
    code = [coco_mask.encode(np.asfortranarray(m.astype(np.uint8)))["counts"].decode() for m in (a, b)]
    assert overlap(code[0], code[1], h, w, "row") == ((a & b).sum(), b.sum(), a.sum())


def test_run_lengths_of_a_large_mask_are_read_exactly():
    rng = np.random.default_rng(5)
    mask = np.zeros((480, 640), np.uint8)
    for _ in range(40):
        y, x = rng.integers(0, 400, 2)
        mask[y : y + 60, x : x + 90] ^= 1
    counts = coco_mask.encode(np.asfortranarray(mask))["counts"].decode()
    flat = mask.ravel(order="F")
    edges = np.flatnonzero(np.diff(flat)) + 1
    expected = np.diff(np.concatenate([[0], edges, [flat.size]]))
    if flat[0]:
        expected = np.concatenate([[0], expected])
    np.testing.assert_array_equal(run_lengths(counts, 480, 640), expected)
    with pytest.raises(ValueError, match="describes"):
        run_lengths(counts, 640, 481)
    with pytest.raises(ValueError):
        run_lengths(counts[:-1], 480, 640)
