"""The text-blind control: every expression gets words about another image of its own dataset."""

import pandas as pd
import pytest

from harness.plugins.controls import load_control


def rewritten(images, splits, seed=0):
    rows = pd.DataFrame({"dataset": "d", "split": splits, "image_id": images})
    rows["sentence"] = [f"{image} {i}" for i, image in enumerate(images)]
    return rows, load_control("text_blind", {}).rewrite(rows, seed)


def about(sentence):
    return int(sentence.split()[0])


def test_words_change_hands_across_images_within_a_split():
    rows, out = rewritten([1, 1, 2, 2, 3, 4], ["val"] * 4 + ["testA"] * 2)
    assert all(about(s) != i for s, i in zip(out["sentence"], out["image_id"], strict=True))
    for split in ("val", "testA"):
        mine = rows["split"] == split
        assert sorted(out.loc[mine, "sentence"]) == sorted(rows.loc[mine, "sentence"])


def test_an_image_with_most_of_a_split_takes_words_from_the_other_splits():
    rows, out = rewritten([1, 1, 1, 2, 5, 6], ["testA"] * 4 + ["val"] * 2)
    assert all(about(s) != i for s, i in zip(out["sentence"], out["image_id"], strict=True))
    assert set(out["sentence"]) <= set(rows["sentence"])
    assert out.equals(rewritten([1, 1, 1, 2, 5, 6], ["testA"] * 4 + ["val"] * 2)[1])


def test_a_dataset_of_one_image_is_refused():
    with pytest.raises(ValueError, match="every expression of d is about image 1"):
        rewritten([1, 1], ["val", "val"])
