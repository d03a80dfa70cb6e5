"""Scenes told in words: what the tiny language model reads before it meets a visual token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.models.captions import PLACES, Slots, caption_loss, place_words
from harness.pretraining.pool import Story, Thing

__all__ = ["asked", "naming", "pieces", "story_slots", "told_states"]

# Cells without an object among those of a scene told cell by cell: enough to learn to pass over them.
_EMPTY = 12
# Share of the stories that are asked by place.
_BY_PLACE = 1 / 3


def asked(story: Story, rng: np.random.Generator) -> Story:
    """The story with its own expression, or, one time in three, with the place of the object in its stead."""
    return replace(story, expression=" ".join(story.place)) if rng.random() < _BY_PLACE else story


def pieces(story: Story, rng: np.random.Generator, cells: bool = False) -> list[tuple[str, ...]]:
    """The scene as positions of the prefix, in any order, each the words of one piece of it.

    A scene is told object by object, as superpixels tell it, or by the quarters of each object's box, or,
    with ``cells``, by the cells of a grid, as patches do, some of which hold no object and tell their place
    alone. So no kind of visual token is the only one that the language model has met.
    """
    kind = rng.integers(3 if cells else 2)
    if kind == 0:
        told = [(*thing.looks, *place_words(thing.x, thing.y)) for thing in story.things]
    elif kind == 1:
        quarters = [(dx, dy) for dx in (-0.25, 0.25) for dy in (-0.25, 0.25)]
        told = [
            (*thing.looks, *place_words(thing.x + dx * thing.width, thing.y + dy * thing.height))
            for thing in story.things
            for dx, dy in quarters
        ]
    else:
        told = _cells(story.things, rng)
    return [told[i] for i in rng.permutation(len(told))]


def _cells(things: tuple[Thing, ...], rng: np.random.Generator) -> list[tuple[str, ...]]:
    middles = (np.arange(PLACES) + 0.5) / PLACES
    told, empty = [], []
    for y, x in product(middles, middles):
        inside = [t for t in things if abs(t.x - x) < t.width / 2 and abs(t.y - y) < t.height / 2]
        if inside:
            told.append((*min(inside, key=lambda t: t.width * t.height).looks, *place_words(x, y)))
        else:
            empty.append(place_words(x, y))
    return told + [empty[i] for i in rng.choice(len(empty), min(_EMPTY, len(empty)), replace=False)]


def told_states(
    model: Any,
    words: dict[str, int],
    stories: Sequence[Story],
    rng: np.random.Generator,
    cells: bool = False,
) -> Tensor:
    """``[n, H]`` states of a language model after each story and its expression, where ``[SEG]`` will stand.

    Each piece of an object is one position, the normalised sum of its words' embeddings. A blank ends the
    text, the mean of all embeddings, which is what ``[SEG]`` starts from.

    Args:
        model: a causal language model.
        words: id of every word and of ``.``; the model's own config names BOS.
        stories: scenes with an expression each.
        rng: how the scenes are told.
        cells: whether some are told cell by cell.
    """
    embed = model.get_input_embeddings()
    bos = embed(torch.tensor([model.config.bos_token_id]))
    blank = embed.weight.mean(0, keepdim=True)
    rows = []
    for story in stories:
        told = [[words[w] for w in piece] for piece in pieces(story, rng, cells)]
        counts = torch.tensor([len(piece) for piece in told])
        spoken = F.embedding_bag(
            torch.tensor([w for piece in told for w in piece]),
            embed.weight,
            counts.cumsum(0) - counts,
            mode="sum",
        )
        spoken = spoken / counts[:, None] ** 0.5
        question = torch.tensor([words[w] for w in (*story.expression.split(), ".")])
        rows.append(torch.cat([bos, spoken, embed(question), blank]))
    inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
    states = model.get_decoder()(inputs_embeds=inputs).last_hidden_state
    return states[torch.arange(len(rows)), torch.tensor([len(row) - 1 for row in rows])]


def naming(
    model: Any, states: Tensor, stories: Sequence[Story], slots: Slots
) -> tuple[Tensor, dict[str, float]]:
    """Loss of naming the objects meant from ``states [n, H]``, and the shares of looks and places named."""
    words = slots.encode((*s.looks, *s.place) for s in stories)
    scores = model.get_output_embeddings()(states)
    guesses = torch.stack([scores[:, ids].argmax(-1) for ids in slots.ids], 1)
    right = (guesses == words).float().mean(0)
    looks = len(stories[0].looks)
    shares = {"looks": right[:looks].mean().item(), "place": right[looks:].mean().item()}
    return caption_loss(scores, words, slots), shares


def story_slots(stories: Sequence[Story], words: dict[str, int]) -> Slots:
    """Slots of looks and place, by the ids in ``words``."""
    return Slots([(*s.looks, *s.place) for s in stories], words.__getitem__)
