"""Region captions: what stands at a place, and what an expression means, in the language model's own words.

Grounding LLMs are aligned by captions of regions beside masks (GLaMM, arXiv 2311.03356; Shikra,
arXiv 2306.15195). Here ``[SEG]`` itself is captioned: the output head names, in one step, every word of the
object that ``[SEG]`` means, as in multi-token prediction (arXiv 2404.19737). So a projector learns what its
tokens must say from each object of an image, which a mask alone tells it slowly. It is no part of SVP's
recipe: a weight of 0 leaves it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional as F

from harness.seeds import numpy_generator

__all__ = ["PLACES", "Captioner", "Captions", "Slots", "caption_loss", "place_words"]

# Columns, and rows, of a place in words.
PLACES = 12


def place_words(x: float, y: float) -> tuple[str, str]:
    """A place in words: column and row in twelfths of the image, from normalised coordinates."""
    return tuple(  # type: ignore[return-value]
        f"{axis}{min(PLACES - 1, max(0, int(PLACES * v)))}" for axis, v in (("x", x), ("y", y))
    )


def _told_apart(words: Sequence[str], encode: Callable[[str], int], unknown: int | None) -> list[int]:
    ids = [encode(word) for word in words]
    if len(words) > 1 and len(set(ids)) == 1 and ids[0] != unknown:  # the loss would be a constant
        raise ValueError(
            f"captions: '{words[0]}' and all that stand in its place, such as '{words[-1]}', begin with the "
            "same token of this language model, which cannot tell them apart; set training.caption_weight: 0"
        )
    return ids


class Slots:
    """The words that compete for each place of a caption.

    Categories compete with categories and colours with colours, never with each other: with one choice
    among all words, what is sure hides what is still to be learnt, and the place of an object never is.

    Attributes:
        ids: of each slot the token ids of its words.
    """

    def __init__(
        self,
        captions: Iterable[Sequence[str | None]],
        encode: Callable[[str], int],
        unknown: int | None = None,
    ):
        """From captions of equal length, ``None`` where one has no word; ``encode`` gives a word's id.

        ``unknown`` is the id of words that are not in the vocabulary: a tiny model on photographs knows the
        names of no category, and learns their places all the same.

        Raises:
            ValueError: all words of a slot have one id, and cannot be told apart.
        """
        seen = [sorted({w for w in words if w is not None}) for words in zip(*captions, strict=True)]
        self._index = [{word: i for i, word in enumerate(words)} for words in seen]
        self.ids = [torch.tensor(_told_apart(words, encode, unknown), dtype=torch.long) for words in seen]

    def encode(self, captions: Iterable[Sequence[str | None]]) -> Tensor:
        """``[m, k]`` numbers of the words among those of their slots; -1 where there is none."""
        return torch.tensor(
            [
                [-1 if word is None else index[word] for index, word in zip(self._index, said, strict=True)]
                for said in captions
            ]
        )


def caption_loss(scores: Tensor, words: Tensor, slots: Slots) -> Tensor:
    """Mean over captions of the mean cross-entropy of their words, each among those of its slot.

    Args:
        scores: ``[m, V]`` scores of the next token.
        words: ``[m, k]`` as :meth:`Slots.encode` gives them, at least one in each caption.
        slots: the ``k`` slots.
    """
    each = [
        F.cross_entropy(scores[:, ids.to(scores.device)].float(), said, ignore_index=-1, reduction="none")
        for ids, said in zip(slots.ids, words.T, strict=True)
    ]
    return (torch.stack(each).sum(0) / (words >= 0).sum(1)).mean()


@dataclass(frozen=True)
class Captions:
    """What a step's ``[SEG]`` tokens are to name.

    Attributes:
        places: for each image the places asked for, each in words, in an expression's stead.
        words: ``[m, k]`` of the captions, in the numbers of ``slots``: for each image first those of its
            expressions, then those of its places.
        slots: the ``k`` slots.
    """

    places: Sequence[Sequence[str]]
    words: Tensor
    slots: Slots

    def loss(self, scores: Tensor) -> Tensor:
        """Sum over captions of their loss, an expression: shares of a step add up by their expressions."""
        asked = sum(map(len, self.places))
        each = len(self.words) / (len(self.words) - asked)
        return each * caption_loss(scores, self.words.to(scores.device), self.slots)


class Captioner:
    """Captions of a run's annotations.

    An expression's caption is the words and the place of the object meant, a place's are the words of the
    object that stands there.
    """

    def __init__(self, annotations: pd.DataFrame, tokenizer: Any):
        """From the prepared annotations; where they have no captions, the category is the caption."""
        said = annotations["caption"].where(annotations["caption"] != "", annotations["category"])
        across = (annotations["x"] + annotations["w"] / 2) / annotations["width"]
        down = (annotations["y"] + annotations["h"] / 2) / annotations["height"]
        looks = [text.split() for text in said]
        longest = max(map(len, looks))
        keys = annotations[["dataset", "ann_id"]].itertuples(index=False, name=None)
        self._told: dict[tuple[str, int], tuple[list[str | None], tuple[str, str]]] = {
            key: ([*words, *[None] * (longest - len(words))], place_words(x, y))
            for key, words, x, y in zip(keys, looks, across, down, strict=True)
        }
        self._in_image = annotations.groupby(["dataset", "image_id"])["ann_id"].agg(list).to_dict()
        # A word of several tokens is told by its first.
        self._slots = Slots(
            ((*words, *place) for words, place in self._told.values()),
            lambda word: tokenizer.encode(word, add_special_tokens=False)[0],
            tokenizer.unk_token_id,
        )

    def draw(self, groups: list[pd.DataFrame], places: int, *key: int) -> Captions:
        """The captions of a step.

        Args:
            groups: the expressions of each image.
            places: how many places an image is asked for, where it has as many objects.
            key: seed, stage and step; which places hangs on them and the image alone.
        """
        asked: list[list[str]] = []
        captions: list[Sequence[str | None]] = []
        for group in groups:
            dataset, image_id = group["dataset"].iloc[0], int(group["image_id"].iloc[0])
            meant = [self._told[dataset, int(a)] for a in group["ann_id"]]
            captions += [(*words, *place) for words, place in meant]
            present = self._in_image[dataset, image_id]
            rng = numpy_generator("captions", *key, image_id)
            drawn = rng.choice(len(present), min(places, len(present)), replace=False)
            there = [self._told[dataset, present[i]] for i in drawn]
            captions += [(*words, None, None) for words, _ in there]
            asked.append([" ".join(place) for _, place in there])
        return Captions(asked, self._slots.encode(captions), self._slots)
