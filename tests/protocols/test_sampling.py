"""The simulated spread agrees with theory, and counts with what can be counted by hand."""

import json

import numpy as np
import pandas as pd
import pytest

from harness.cli import app
from harness.scoring.sampling import (
    count_protocols,
    draw_scores,
    exact_spread,
    leakage,
    read_texts,
    sampling_study,
)


def write(folder, sizes, name="val.jsonl"):
    """Two objects an image, far apart; the first has all expressions but one."""
    lines = []
    for image, size in enumerate(sizes):
        for k in range(size):
            second = k == size - 1 and size > 1
            box = [100, 100, 120, 110] if second else [0, 0, 10, 10]
            lines.append(
                {"dataset": "toy", "split": "val", "image_id": image, "ref_id": 2 * image + second,
                 "sent_id": 100 * image + k, "bbox_xyxy_int": box, "sent": "x"}
            )  # fmt: skip
    (folder / name).write_text("\n".join(map(json.dumps, lines)))


def test_counts_by_hand(tmp_path):
    write(tmp_path, [1, 3, 6])
    full, drawn = count_protocols(read_texts(tmp_path)).to_dict("records")
    assert (full["n_expressions"], full["conversations"], full["share"]) == (10, 10, 1.0)
    assert (drawn["n_expressions"], drawn["conversations"], drawn["share"]) == (7, 3, 0.7)


def test_the_spread_of_drawing_three_of_four_by_listing_all_draws():
    iou = np.array([0.1, 0.9, 0.4, 0.8])
    means = [np.delete(iou, k).mean() for k in range(4)]
    assert exact_spread(iou, np.zeros(4)) == pytest.approx(np.std(means))
    assert exact_spread(iou, np.arange(4)) == 0.0  # an expression an image: nothing is drawn


def test_the_simulation_agrees_with_theory_and_has_no_bias(tmp_path):
    write(tmp_path, [8] * 60)
    table = sampling_study(read_texts(tmp_path), accuracies=(0.6,), reruns=800)
    for row in table.itertuples():
        assert row.giou_sd == pytest.approx(row.giou_sd_exact, rel=0.1)
        assert abs(row.giou_mean - row.giou_full) < 5 * row.giou_sd / np.sqrt(800)
        assert row.giou_low < row.giou_full < row.giou_high and row.giou_range_of_5 > row.giou_sd


def test_a_model_scores_what_it_is_said_to(tmp_path):
    write(tmp_path, [6] * 400)
    rows = read_texts(tmp_path)
    for by_object in (False, True):
        inter, union = draw_scores(rows, 0.75, by_object)
        right = inter > 0  # the two objects of an image do not touch
        assert right.mean() == pytest.approx(0.75, abs=0.05)
        assert (inter / union)[right].mean() == pytest.approx(12 / 14, abs=0.01)
        assert set(union[~right]) == {300.0}  # 10 x 10 and 20 x 10 pixels
        same = pd.Series(right).groupby(rows["ref_id"]).nunique()
        assert (same.max() == 1) == by_object


def test_leakage_counts_images_and_expressions(tmp_path):
    train = [{"image_id": i} for i in (1, 1, 2, 3)]
    (tmp_path / "a_train_part.jsonl").write_text("\n".join(map(json.dumps, train)))
    (tmp_path / "valtest_image_ids_3.json").write_text("[1, 3, 9]")
    (row,) = leakage(tmp_path).to_dict("records")
    assert (row["images"], row["expressions"]) == (3, 4)
    assert (row["dropped_images"], row["dropped_expressions"], row["held_out_images"]) == (2, 3, 3)


def test_the_command_writes_its_tables(tmp_path, capsys):
    write(tmp_path, [5, 2])
    assert (
        app(["protocols", str(tmp_path), "--out", str(tmp_path / "out"), "--reruns", "20", "--json"]) is None
    )
    assert set(json.loads(capsys.readouterr().out)) == {"counts", "sampling", "leakage"}
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"counts.csv", "sampling.csv", "leakage.csv", "provenance.json"}
    with pytest.raises(ValueError, match="name another folder"):
        read_texts(tmp_path / "out")
