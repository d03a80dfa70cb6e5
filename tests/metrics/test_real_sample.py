"""Scores on masks of real photographs equal decoding and counting them; a perfect run scores 1."""

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from harness.data.options import ReferSet
from harness.data.prepare import prepare
from harness.scoring.metrics import score_predictions, summarise

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(not os.environ.get("RIS_REAL_DATA"), reason="RIS_REAL_DATA names no folder"),
]


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    out = tmp_path_factory.mktemp("prepared")
    sets = [ReferSet(name="refcoco", split_by="unc", splits=("val", "testA", "testB"))]
    prepare(Path(os.environ["RIS_REAL_DATA"]), sets, out, progress=False)
    return pd.read_parquet(out / "expressions.parquet"), pd.read_parquet(out / "annotations.parquet")


def run_of(expressions, annotations, change):
    """Predictions that are ``change`` of the ground truth's pixels."""
    rows = expressions.merge(
        annotations[["dataset", "ann_id", "rle", "height", "width"]], on=["dataset", "ann_id"]
    )
    codes = []
    for row in rows.itertuples():
        truth = coco_mask.decode({"size": [row.height, row.width], "counts": row.rle.encode()})
        codes.append(coco_mask.encode(np.asfortranarray(change(truth)))["counts"].decode())
    same = {
        "study": "x",
        "projector": "p",
        "variant": "base",
        "budget": "auto",
        "seed": 0,
        "protocol": "full",
    }
    return rows.assign(rle=codes, visual_tokens=9, seg_emitted=True, status="ok", **same)


def test_a_perfect_run_scores_one_on_every_split(prepared):
    table = summarise(score_predictions(run_of(*prepared, lambda m: m), *prepared), ["split"]).set_index(
        "split"
    )
    assert (table[["giou", "ciou", "p90"]] == 1).all(axis=None)
    assert table["n_expressions"].to_dict() == {"val": 45, "testA": 18, "testB": 33}
    assert table["n_images"].to_dict() == {"val": 5, "testA": 2, "testB": 5}


def test_a_shifted_run_equals_counting_pixels(prepared):
    expressions, annotations = prepared
    shifted = run_of(expressions, annotations, lambda m: np.roll(m, 25, axis=1))
    scores = score_predictions(shifted, expressions, annotations).set_index(["split", "ref_id", "sent_id"])
    codes = annotations.set_index("ann_id")
    for row in expressions.itertuples():
        truth = codes.loc[row.ann_id]
        size = [truth["height"], truth["width"]]
        mask = coco_mask.decode({"size": size, "counts": truth["rle"].encode()}).astype(bool)
        guess = np.roll(mask, 25, axis=1)
        got = scores.loc[(row.split, row.ref_id, row.sent_id)]
        assert (got["intersection"], got["union"]) == ((mask & guess).sum(), (mask | guess).sum())
