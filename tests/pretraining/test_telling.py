"""Scenes told in words: what is told, and that neighbours in a batch change nothing."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.pretraining.pool import Story, Thing
from harness.pretraining.telling import asked, naming, pieces, story_slots, told_states

CUP, STAR = ("large", "red", "plain", "cup"), ("small", "blue", "striped", "star")


class Fixed:
    """Draws the same kind and share each time and leaves orders alone."""

    def __init__(self, kind, share=0.0):
        self.kind, self.share = kind, share

    def integers(self, count):
        return min(self.kind, count - 1)

    def random(self):
        return self.share

    def permutation(self, count):
        return np.arange(count)

    def choice(self, count, size, replace):
        return np.arange(size)


@pytest.fixture
def story():
    things = (Thing(CUP, 0.5, 0.5, 0.4, 0.2), Thing(STAR, 0.1, 0.9, 0.1, 0.1))
    return Story(0, 7, things, "red cup", CUP, ("x6", "y6"))


def test_one_piece_tells_the_centre(story):
    assert pieces(story, Fixed(0)) == [(*CUP, "x6", "y6"), (*STAR, "x1", "y10")]


def test_four_pieces_tell_the_quarters_of_the_box(story):
    told = pieces(story, Fixed(1))
    # x: 0.5 -+ a quarter of 0.4 is 0.4 and 0.6, in twelfths 4 and 7; y: 0.45 and 0.55, in twelfths 5 and 6
    assert told[:4] == [(*CUP, x, y) for x in ("x4", "x7") for y in ("y5", "y6")]
    assert {piece[:4] for piece in told[4:]} == {STAR}


def test_cells_tell_what_their_middle_lies_in_and_empty_ones_their_place(story):
    told = pieces(story, Fixed(2), cells=True)
    # The cup's box is 0.3..0.7 by 0.4..0.6: middles of columns 4 to 7 and rows 5 and 6;
    # the star's is 0.05..0.15 by 0.85..0.95: of column 1 and row 10.
    assert told[:8] == [(*CUP, f"x{x}", f"y{y}") for y in (5, 6) for x in (4, 5, 6, 7)]
    assert told[8] == (*STAR, "x1", "y10")
    assert told[9:] == [(f"x{x}", "y0") for x in range(12)]


def test_a_smaller_object_stands_before_a_larger_in_a_cell(story):
    over = Thing(STAR, 0.5, 0.5, 0.2, 0.2)
    told = pieces(replace(story, things=(over, story.things[0])), Fixed(2), cells=True)
    assert (*STAR, "x5", "y5") in told and (*CUP, "x5", "y5") not in told


def test_a_story_is_asked_by_its_expression_or_its_place(story):
    assert asked(story, Fixed(0, share=0.9)).expression == "red cup"
    assert asked(story, Fixed(0, share=0.1)).expression == "x6 y6"


def test_naming_has_each_word_compete_with_its_like(story):
    words = {w: i for i, w in enumerate((*CUP, "x6", "y6", "x1", "y1", *STAR))}
    other = replace(story, looks=STAR, place=("x1", "y1"))

    class Head:
        def get_output_embeddings(self):
            return torch.nn.Identity()

    scores = torch.zeros(1, len(words))
    scores[0, [words[w] for w in ("large", "red", "plain", "star", "x6", "y1")]] = 5.0
    loss, shares = naming(Head(), scores, [story], story_slots([story, other], words))
    assert shares == {"looks": 0.75, "place": 0.5}
    # two words a slot: four times log(1 + e^-5), twice log(1 + e^5)
    assert loss.item() == pytest.approx((4 * math.log1p(math.exp(-5)) + 2 * math.log1p(math.exp(5))) / 6)


def test_padding_and_neighbours_leave_a_state_alone(story):
    words = sorted({*CUP, *STAR, *(f"{a}{i}" for a in "xy" for i in range(12)), "."})
    index = {w: i + 1 for i, w in enumerate(words)}
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(words) + 1,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            bos_token_id=0,
        )
    ).eval()
    longer = Story(0, 1, story.things * 3, "small blue star", story.looks, story.place)
    with torch.no_grad():
        alone = told_states(model, index, [story], Fixed(0))
        beside = told_states(model, index, [longer, story], Fixed(0))
        other = told_states(model, index, [longer], Fixed(0))
    torch.testing.assert_close(beside[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone, other, atol=1e-2)
