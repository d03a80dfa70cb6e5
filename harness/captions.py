"""Region captions: what stands at a place, and what an expression means, in the language model's own words.

Grounding LLMs are aligned by captions of regions beside masks (GLaMM, arXiv 2311.03356; Shikra,
arXiv 2306.15195). Here ``[SEG]`` itself is captioned: the output head names, in one step, every word of the
object that ``[SEG]`` means, as in multi-token prediction (arXiv 2404.19737). So a projector learns what its
tokens must say from each object of an image, which a mask alone tells it slowly. It is no part of SVP's
recipe: a weight of 0 leaves it out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

__all__ = ["PLACES", "Captioner", "Captions", "caption_loss", "place_words"]

# Columns, and rows, of a place in words.
PLACES = 12


def place_words(x: float, y: float) -> tuple[str, str]:
    """A place in words: column and row in twelfths of the image, from normalised coordinates."""
    return tuple(  # type: ignore[return-value]
        f"{axis}{min(PLACES - 1, max(0, int(PLACES * v)))}" for axis, v in (("x", x), ("y", y))
    )


def caption_loss(scores: Tensor, words: Tensor) -> Tensor:
    """Mean over captions of the mean negative log-probability of their words, in no order.

    Args:
        scores: ``[m, V]`` scores of the next word.
        words: ``[m, k]`` int64 token ids; -1 is padding.
    """
    said = words >= 0
    taken = scores.float().log_softmax(-1).gather(1, words.clamp(min=0)) * said
    return -(taken.sum(1) / said.sum(1).clamp(min=1)).mean()


@dataclass(frozen=True)
class Captions:
    """What a step's ``[SEG]`` tokens are to name.

    Attributes:
        places: for each image the places asked for, each in words, in an expression's stead.
        words: ``[m, k]`` token ids, padded by -1, of the captions: for each image first those of its
            expressions, then those of its places.
    """

    places: Sequence[Sequence[str]]
    words: Tensor


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
        keys = annotations[["dataset", "ann_id"]].itertuples(index=False, name=None)
        self._told = {
            key: (text, " ".join(place_words(x, y)))
            for key, text, x, y in zip(keys, said, across, down, strict=True)
        }
        self._tokenizer = tokenizer
        self._ids: dict[str, list[int]] = {}
        self._in_image = annotations.groupby(["dataset", "image_id"])["ann_id"].agg(list).to_dict()

    def _encode(self, text: str) -> list[int]:
        if text not in self._ids:
            self._ids[text] = self._tokenizer.encode(text, add_special_tokens=False)
        return self._ids[text]

    def draw(self, groups: list[pd.DataFrame], places: int, rng: np.random.Generator) -> Captions:
        """The captions of a step.

        Args:
            groups: the expressions of each image.
            places: how many places an image is asked for, where it has as many objects.
            rng: which.
        """
        asked, captions = [], []
        for group in groups:
            dataset, image_id = group["dataset"].iloc[0], int(group["image_id"].iloc[0])
            captions += [" ".join(self._told[dataset, int(a)]) for a in group["ann_id"]]
            present = self._in_image[dataset, image_id]
            drawn = rng.choice(len(present), min(places, len(present)), replace=False)
            told = [self._told[dataset, present[i]] for i in drawn]
            captions += [words for words, _ in told]
            asked.append([place for _, place in told])
        ids = [torch.tensor(self._encode(text), dtype=torch.long) for text in captions]
        return Captions(asked, torch.nn.utils.rnn.pad_sequence(ids, batch_first=True, padding_value=-1))
