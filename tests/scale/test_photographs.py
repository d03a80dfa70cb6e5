"""Photographs that are not square, as most are: where their masks lie in SAM's square."""

import numpy as np
import pandas as pd
import pytest

from harness.prediction import encode_mask
from harness.training.assembly import RunData
from harness.training.tuning import _ious


def resized(made, masks):
    """The data of a run whose first images are as large as these masks, which all of their objects have.

    Also an expression of each of those images.
    """
    folder = made.plan.prepared_dir(made.run)
    ids = made.tables.expressions["image_id"].drop_duplicates().tolist()[: len(masks)]
    for name in ("images", "annotations"):
        table = pd.read_parquet(folder / f"{name}.parquet")
        for image_id, mask in zip(ids, masks, strict=True):
            table.loc[table["image_id"] == image_id, "height"] = mask.shape[0]
            table.loc[table["image_id"] == image_id, "width"] = mask.shape[1]
            if name == "annotations":
                table.loc[table["image_id"] == image_id, "rle"] = encode_mask(mask)
        table.to_parquet(folder / f"{name}.parquet", index=False)
    data = RunData(made.plan, made.run)
    rows = data.expressions.drop_duplicates("image_id").set_index("image_id", drop=False)
    return data, rows.loc[ids]


def test_a_mask_fills_its_photographs_part_of_sams_square_and_the_rest_is_padding(study):
    made = study(changes={"data.seed": 41})  # its tables are rewritten
    made.features()
    rng = np.random.default_rng(0)
    wide, tall, square = (rng.random(size) > 0.5 for size in ((48, 96), (192, 96), (96, 96)))
    data, rows = resized(made, (wide, tall, square))
    target, valid = data.targets(rows, 96)
    expected, inside = np.zeros((3, 96, 96)), np.zeros((3, 96, 96), bool)
    expected[0, :48], inside[0, :48] = wide, True
    expected[1, :, :48], inside[1, :, :48] = tall.reshape(96, 2, 48, 2).mean((1, 3)), True
    expected[2], inside[2] = square, True
    assert np.array_equal(target.numpy(), expected)
    assert np.array_equal(valid.numpy(), inside)
    assert data.targets(rows.iloc[2:], 96)[1] is None


def test_pixels_that_are_not_scored_are_not_learnt_nor_searched_by(study):
    made = study(changes={"data.seed": 42})
    made.features()
    rng = np.random.default_rng(1)
    wide, square = (rng.random(size) > 0.5 for size in ((48, 96), (96, 96)))
    unscored = np.zeros((48, 96), np.uint8)
    unscored[:, 60:] = 1
    wide[:, 60:] = False
    data, rows = resized(made, (wide, square))
    path = made.plan.prepared_dir(made.run) / "annotations.parquet"
    table = pd.read_parquet(path)
    table["rle_ignored"] = ""
    table.loc[table["image_id"] == rows.iloc[0]["image_id"], "rle_ignored"] = encode_mask(unscored)
    table.to_parquet(path, index=False)
    data = RunData(made.plan, made.run)
    _, valid = data.targets(rows, 96)
    inside = np.zeros((2, 96, 96), bool)
    inside[0, :48, :60], inside[1] = True, True
    assert np.array_equal(valid.numpy(), inside)
    # A prediction of everything: what is not scored is no mistake of the first.
    everything = [encode_mask(np.ones(mask.shape, np.uint8)) for mask in (wide, square)]
    ours = _ious(data, rows, everything)
    assert ours == pytest.approx([wide.sum() / (48 * 60), square.mean()])
