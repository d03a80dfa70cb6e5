"""Region captions: the loss by hand, what is drawn, and that masks do not feel the places beside them."""

import math

import pandas as pd
import pytest
import torch
from tiny_ris import EXPRESSIONS, features, make_model
from torch import nn

from harness.models.captions import Captioner, Captions, Slots, caption_loss


def test_a_word_competes_with_its_like_alone():
    ids = {"cup": 4, "dog": 0, "star": 2, "x1": 3, "x2": 1}
    slots = Slots([("cup", "x1"), ("star", "x2"), ("dog", None)], ids.__getitem__)
    words = slots.encode([("star", "x1"), ("cup", None)])
    scores = torch.log(torch.tensor([[0.1, 0.3, 0.5, 0.1, 0.2], [0.4, 9.0, 0.4, 9.0, 0.2]]))
    # star among cup, dog and star; x1 among x1 and x2; cup among the three
    first = -(math.log(0.5 / 0.8) + math.log(0.1 / 0.4)) / 2
    assert caption_loss(scores, words, slots).item() == pytest.approx((first - math.log(0.2)) / 2)


def test_words_that_a_tokenizer_cannot_tell_apart_are_refused():
    """LLaMA's begins x0 to x11 with one token: such a loss would be a constant."""
    with pytest.raises(ValueError, match=r"'x0' and all .* begin with the same token.*caption_weight: 0"):
        Slots([("cup", "x0"), ("dog", "x1")], {"cup": 1, "dog": 2, "x0": 921, "x1": 921}.__getitem__)
    unknown = Slots([("cup",), ("dog",)], {"cup": 0, "dog": 0}.__getitem__, unknown=0)
    assert unknown.ids[0].tolist() == [0, 0]
    assert Slots([("cup", "cup")], {"cup": 1}.__getitem__).ids[1].tolist() == [1]  # in slots of their own


ONE = Slots([("a",), ("b",)], {"a": 5, "b": 6}.get)


class Words:
    """A tokenizer of whole words, each a number by its first sight."""

    unk_token_id = None

    def __init__(self):
        self.known = []

    def encode(self, text, add_special_tokens):
        assert not add_special_tokens
        for word in text.split():
            if word not in self.known:
                self.known.append(word)
        return [self.known.index(word) for word in text.split()]


@pytest.fixture
def annotations():
    box = {"x": 10.0, "y": 0.0, "w": 20.0, "h": 50.0, "width": 100, "height": 50, "image_id": 4}
    rows = [
        {"dataset": "a", "ann_id": 1, "category": "cup", "caption": "red cup", **box},
        {"dataset": "a", "ann_id": 2, "category": "star", "caption": "", **box, "x": 80.0},
        {"dataset": "b", "ann_id": 1, "category": "dog", "caption": "", **box},
    ]
    return pd.DataFrame(rows)


def group(**columns):
    return pd.DataFrame({"dataset": ["a", "a"], "image_id": [4, 4], "ann_id": [2, 1], **columns})


def test_an_expression_names_object_and_place_and_a_place_its_object(annotations):
    tokenizer = Words()
    captions = Captioner(annotations, tokenizer).draw([group()], 8, 0)
    ids = captions.slots.ids
    told = [
        {tokenizer.known[ids[slot][i]] for slot, i in enumerate(row) if i >= 0}
        for row in captions.words.tolist()
    ]
    # centres: x = (10 + 10) / 100 and (80 + 10) / 100, y = 25 / 50; in twelfths 2, 10 and 6
    assert told[:2] == [{"star", "x10", "y6"}, {"red", "cup", "x2", "y6"}]
    by_place = dict(zip(captions.places[0], told[2:], strict=True))
    assert by_place == {"x2 y6": {"red", "cup"}, "x10 y6": {"star"}}


def test_no_more_places_than_asked_for_and_the_draw_is_the_generators(annotations):
    drawn = [Captioner(annotations, Words()).draw([group()], 1, seed).places for seed in (*range(8), 0)]
    assert all(len(places[0]) == 1 for places in drawn)
    assert drawn[0] == drawn[-1] and len({places[0][0] for places in drawn}) == 2


def test_places_beside_expressions_leave_their_masks_alone(language_dir):
    model = make_model(language_dir)
    image, sam = features(3)
    asked = Captions([["left"], [], ["red", "cup"]], torch.zeros(9, 1, dtype=torch.long), ONE)
    with torch.no_grad():
        plain = model(image, EXPRESSIONS, sam)
        beside = model(image, EXPRESSIONS, sam, asked)
    torch.testing.assert_close(beside.logits, plain.logits, atol=1e-5, rtol=1e-5)
    assert plain.caption is None and beside.caption > 0


def test_each_answer_counts_by_expression_places_answers_too(language_dir):
    """Shares of a step add up by expressions: answers to places are not to dilute those of expressions."""
    model = make_model(language_dir)
    image, sam = features(1)
    said, places = ["the red cup", "left star"], ["left of the star", "right"]
    asked = Captions([places], torch.zeros(4, 1, dtype=torch.long), ONE)
    with torch.no_grad():
        beside = model(image, [said], sam, asked)
        packed = model.pack(beside.visual, [[*said, *places]])
        states = model.hidden(packed)[packed.target_row, packed.target_column]
        scores = model.language.get_output_embeddings()(states)
    mean = nn.functional.cross_entropy(scores.float(), packed.target_ids)
    assert beside.ce.item() == pytest.approx(4 / 2 * mean.item(), rel=1e-5)


def test_captions_reach_the_projector(language_dir):
    model = make_model(language_dir)
    model.set_stage(1)
    image, sam = features(2)
    asked = Captions([["left"], ["red"]], torch.tensor([[0], [1], [0], [1]]), ONE)
    model(image, [["the red cup"], ["left star"]], sam, asked).caption.backward()
    assert model.projector.linear.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in model.seg_head.parameters())


def test_while_aligning_the_projector_learns_alone_and_whole(language_dir):
    model = make_model(language_dir)
    names = {name for name, _ in model.set_stage(1, aligning=True)}
    assert names == {f"projector.{name}" for name, _ in model.projector.named_parameters()}
    assert model.projector.stage == 2 and model.projector.aligning
    later = {name for name, _ in model.set_stage(1)}
    assert model.projector.stage == 1 and not model.projector.aligning
    assert any(name.startswith("seg_head.") for name in later)


def test_the_loss_without_a_mask_is_that_beside_one(language_dir):
    model = make_model(language_dir)
    image, sam = features(3)
    asked = Captions([["left"], [], ["red", "cup"]], torch.tensor([[0], [1], [0]] * 3), ONE)
    with torch.no_grad():
        alone, _ = model.caption(image, EXPRESSIONS, asked)
        beside = model(image, EXPRESSIONS, sam, asked).caption
    torch.testing.assert_close(alone, beside)
