"""Scenes told in words: what is told, and that neighbours in a batch change nothing."""

import numpy as np
import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.pool import Story, Thing
from harness.telling import pieces, told_states

CUP, STAR = ("large", "red", "plain", "cup"), ("small", "blue", "striped", "star")


class Fixed:
    """Draws the same number each time and leaves orders alone."""

    def __init__(self, value):
        self.value = value

    def random(self):
        return self.value

    def permutation(self, count):
        return np.arange(count)


@pytest.fixture
def story():
    things = (Thing(CUP, 0.5, 0.5, 0.4, 0.2), Thing(STAR, 0.1, 0.9, 0.1, 0.1))
    return Story(0, 7, things, "red cup", (*CUP[::-1], "x6", "y6"))


def test_one_piece_tells_the_centre(story):
    assert pieces(story, Fixed(0.0)) == [(*CUP, "x6", "y6"), (*STAR, "x1", "y10")]


def test_four_pieces_tell_the_quarters_of_the_box(story):
    told = pieces(story, Fixed(0.9))
    # x: 0.5 -+ a quarter of 0.4 is 0.4 and 0.6, in twelfths 4 and 7; y: 0.45 and 0.55, in twelfths 5 and 6
    assert told[:4] == [(*CUP, x, y) for x in ("x4", "x7") for y in ("y5", "y6")]
    assert {piece[:4] for piece in told[4:]} == {STAR}


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
    longer = Story(0, 1, story.things * 3, "small blue star", story.answer)
    with torch.no_grad():
        alone = told_states(model, index, [story], Fixed(0.0))
        beside = told_states(model, index, [longer, story], Fixed(0.0))
        other = told_states(model, index, [longer], Fixed(0.0))
    torch.testing.assert_close(beside[1:], alone, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(alone, other, atol=1e-2)
