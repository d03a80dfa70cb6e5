"""The oracle's masks and tokens, on images small enough to count by hand."""

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from pycocotools import mask as coco_mask

from harness import prediction
from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.plugins.controls import load_control

ROOT = Path(__file__).resolve().parents[2]


def drawn(*rows):
    return np.array([[cell == "#" for cell in row] for row in rows])


SUPERPIXELS = {
    1: np.array([drawn("####", "...."), drawn("###.", "###."), drawn("#...", "#...")]),
    2: np.array([drawn("###", "###", "###"), drawn("...", "###", "...")]),
}
# By annotation: its image, its mask, the superpixel of highest IoU; worked out by hand:
TARGETS = {
    10: (1, drawn("##..", "##.."), 1),  # 2/6, 4/6, 2/4: neither the most precise nor the smallest
    11: (1, drawn("...#", "...."), 0),  # 1/4, 0, 0
    12: (2, drawn("...", "###", "###"), 0),  # 6/9, 3/6: not the one that lies inside
    13: (2, drawn("...", ".#.", "..."), 1),  # 1/9, 1/3: not the one that comes first
}


@pytest.mark.parametrize("annotation", TARGETS)
def test_the_superpixel_of_highest_iou_is_chosen(annotation):
    image, target, best = TARGETS[annotation]
    chosen = load_control("oracle", {}).choose(SUPERPIXELS[image], target.astype(np.uint8))
    assert np.array_equal(chosen, SUPERPIXELS[image][best])


def test_every_expression_gets_its_own_targets_superpixel_and_its_images_tokens(monkeypatch, tmp_path):
    # Both datasets show image 1, so that expressions of an image do not stand together.
    asked = [("one", 100, 11), ("one", 101, 10), ("one", 102, 12), ("two", 103, 10), ("two", 104, 13)]
    expressions = pd.DataFrame(asked, columns=["dataset", "sent_id", "ann_id"])
    expressions["image_id"] = [TARGETS[annotation][0] for _, _, annotation in asked]
    expressions = expressions.assign(split="val", ref_id=expressions["sent_id"])
    stored = SimpleNamespace(masks=lambda image: SimpleNamespace(masks=SUPERPIXELS[image]))
    data = SimpleNamespace(
        expressions=expressions,
        superpixels=stored,
        mask=lambda _, annotation: TARGETS[annotation][1].astype(np.uint8),
        size=lambda image: SUPERPIXELS[image].shape[1:],
    )
    monkeypatch.setattr(prediction, "RunData", lambda *_: data)
    monkeypatch.setattr(Plan, "study_dir", tmp_path)
    raw = {**read_study(ROOT / "config/default.yaml", ROOT), "rows": ["mlp", "oracle"]}
    plan = Plan.from_raw(raw, ROOT)
    run = plan.run_named("oracle")
    prediction.predict_stage(plan, run)
    found = pd.read_parquet(tmp_path / "predictions" / f"{run.id}.parquet").set_index("sent_id")
    assert found["visual_tokens"].to_dict() == {100: 3, 101: 3, 102: 2, 103: 3, 104: 2}
    assert found["seg_emitted"].all()
    for _, sentence, annotation in asked:
        image, _, best = TARGETS[annotation]
        row = found.loc[sentence]
        code = {"size": [row["height"], row["width"]], "counts": row["rle"].encode()}
        assert np.array_equal(coco_mask.decode(code).astype(bool), SUPERPIXELS[image][best])
