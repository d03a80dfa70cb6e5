"""Text-blind: trained weights, expressions of other images."""

from __future__ import annotations

import hashlib
from typing import ClassVar

import numpy as np
import pandas as pd

from harness.plugins.controls import Control

__all__ = ["TextBlind"]


class TextBlind(Control):
    """Shows each image the expressions of another: what is left is what the model does without the text."""

    name: ClassVar[str] = "text_blind"
    kind: ClassVar[str] = "control"
    acts_on: ClassVar[str] = "run"
    reference: ClassVar[str] = (
        "Cirik, Morency, Berg-Kirkpatrick, NAACL 2018 (what referring expression models ignore)"
    )

    def rewrite(self, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        """Permute the sentences within each split by a seeded derangement across images.

        Where one image holds more than half of a split's expressions there is none: each expression then
        takes the words of one about another image of its dataset.

        Raises:
            ValueError: the dataset has expressions of one image only.
        """
        out = rows.copy()
        for (dataset, split), part in rows.groupby(["dataset", "split"]):
            name = f"text_blind/{seed}/{dataset}/{split}"
            rng = np.random.default_rng(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big"))
            images = part["image_id"].to_numpy()
            largest = int(np.unique(images, return_counts=True)[1].max())
            if 2 * largest > len(images):
                whole = rows[rows["dataset"] == dataset]
                for index, image in part["image_id"].items():
                    elsewhere = whole.loc[whole["image_id"] != image, "sentence"].to_numpy()
                    if len(elsewhere) == 0:
                        raise ValueError(f"text_blind: every expression of {dataset} is about image {image}")
                    out.loc[index, "sentence"] = elsewhere[rng.integers(len(elsewhere))]
                continue
            # In image-sorted order, a rotation by at least the largest group leaves no sentence at home.
            order = np.argsort(images, kind="stable")
            shift = int(rng.integers(largest, len(images) - largest + 1))
            out.loc[part.index[order], "sentence"] = part["sentence"].to_numpy()[np.roll(order, shift)]
        return out
