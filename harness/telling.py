"""Scenes told in words: what the tiny language model reads before it meets a visual token."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.pool import Story, place_words

__all__ = ["pieces", "told_states"]


def pieces(story: Story, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The scene as positions of the prefix, in any order, each the words of one piece of an object.

    An object is told in one piece, as superpixels tell it, or in four from the quarters of its box, as
    patches do; so no kind of visual token is the only one that the language model has met.
    """
    told = []
    for thing in story.things:
        quarters = [(dx, dy) for dx in (-0.25, 0.25) for dy in (-0.25, 0.25)]
        for dx, dy in [(0.0, 0.0)] if rng.random() < 0.5 else quarters:
            told.append((*thing.looks, *place_words(thing.x + dx * thing.width, thing.y + dy * thing.height)))
    return [told[i] for i in rng.permutation(len(told))]


def told_states(
    model: Any, words: dict[str, int], stories: Sequence[Story], rng: np.random.Generator
) -> Tensor:
    """``[n, H]`` states of a language model after each story and its expression, where ``[SEG]`` will stand.

    Each piece of an object is one position, the normalised sum of its words' embeddings. A blank ends the
    text, the mean of all embeddings, which is what ``[SEG]`` starts from.

    Args:
        model: a causal language model.
        words: id of every word and of ``.``; the model's own config names BOS.
        stories: scenes with an expression each.
        rng: how the scenes are told.
    """
    embed = model.get_input_embeddings()
    bos = embed(torch.tensor([model.config.bos_token_id]))
    blank = embed.weight.mean(0, keepdim=True)
    rows = []
    for story in stories:
        told = torch.tensor([[words[w] for w in piece] for piece in pieces(story, rng)])
        question = torch.tensor([words[w] for w in (*story.expression.split(), ".")])
        rows.append(torch.cat([bos, embed(told).sum(1) / told.shape[1] ** 0.5, embed(question), blank]))
    inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    states = model.get_decoder()(inputs_embeds=inputs).last_hidden_state
    return states[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]
