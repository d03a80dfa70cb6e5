"""The pretraining pool: labels against plain loops over decoded masks, texts that answer themselves."""

import numpy as np
import pytest
import torch
from pycocotools import mask as coco_mask

from harness.data.options import SyntheticData
from harness.data.synthetic import generate_pool
from harness.models.captions import place_words
from harness.pretraining.models import build_tokenizer
from harness.pretraining.pool import Pool


@pytest.fixture(scope="module")
def pool(tmp_path_factory):
    out = tmp_path_factory.mktemp("pool")
    generate_pool(SyntheticData(pool_images=4), out)
    return Pool(out / "pool")


def decoded(frame):
    return [
        coco_mask.decode({"size": [int(h), int(w)], "counts": c.encode()})
        for c, h, w in zip(frame["rle"], frame["height"], frame["width"], strict=True)
    ]


def test_patch_labels_name_what_covers_most_of_a_patch(pool):
    labels = pool.patch_labels((12, 12))
    for i in range(len(pool)):
        frame = pool.annotations[int(pool.images["image_id"][i])]
        masks = decoded(frame)
        for cell in range(0, 144, 7):
            y, x = divmod(cell, 12)
            shares = [m[8 * y : 8 * y + 8, 8 * x : 8 * x + 8].sum() / 64 for m in masks]
            best = int(np.argmax(shares))
            for attribute in ("category", "color", "pattern", "size"):
                name = frame[attribute].iloc[best] if shares[best] >= 1 / 3 else None
                expected = 0 if name is None else 1 + pool.classes[attribute].index(name)
                assert labels[attribute][i, cell] == expected


def test_dense_targets_point_to_the_centre_of_their_object(pool):
    targets = pool.dense_targets(48)
    frame = pool.annotations[int(pool.images["image_id"][0])]
    object_cells = 0
    for mask in decoded(frame):
        ys, xs = np.nonzero(mask)
        for y, x in [(a, b) for a in range(48) for b in range(48) if mask[2 * a + 1, 2 * b + 1]]:
            object_cells += 1
            assert targets.fine[0, 0, y, x] == 1
            reached = (x + 0.5) / 48 + targets.fine[0, 2, y, x] / 6
            assert reached == pytest.approx((xs.mean() + 0.5) / 96, abs=1e-5)
            reached = (y + 0.5) / 48 + targets.fine[0, 3, y, x] / 6
            assert reached == pytest.approx((ys.mean() + 0.5) / 96, abs=1e-5)
    assert targets.fine[0, 0].sum() == object_cells


def test_a_point_lies_in_each_mask_that_it_asks_for(pool):
    points, masks = pool.points(0, 40, np.random.default_rng(0))
    columns, rows = (points - 0.5).astype(int).T
    assert masks[np.arange(40), :, rows, columns].all()
    assert (masks[:, 0] <= masks[:, 1]).all() and (masks[:, 1] == masks[:, 2]).all()
    assert (masks[:, 0] < masks[:, 1]).any()  # some asked for a detail


def test_stories_answer_with_words_that_the_scene_holds(pool):
    stories = pool.stories()
    assert len(stories) == len(pool.expressions)
    for story in stories:
        assert (story.looks, story.place) in {(t.looks, place_words(t.x, t.y)) for t in story.things}


def test_places_in_words():
    assert place_words(0.0, 1.0) == ("x0", "y11")
    assert place_words(0.5, 0.24) == ("x6", "y2")
    assert place_words(-0.1, 1.2) == ("x0", "y11")


def test_the_tokenizer_keeps_every_word_and_names_the_unknown(tmp_path):
    build_tokenizer(["red", "cup"]).save_pretrained(tmp_path)
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tmp_path)
    ids = tokenizer.encode("red cup green")
    assert tokenizer.convert_ids_to_tokens(ids) == ["<s>", "red", "cup", "<unk>"]
    assert torch.tensor(ids).dtype == torch.int64
