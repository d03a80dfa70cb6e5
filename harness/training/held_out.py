"""Images of the train split that the learning-rate search is judged on."""

from __future__ import annotations

import pandas as pd

from harness.seeds import seed_of

__all__ = ["held_out", "without_held_out"]


def _held_out_images(expressions: pd.DataFrame, count: int) -> list[int]:
    images = sorted(set(expressions.loc[expressions["split"] == "train", "image_id"]))
    if count >= len(images):
        raise ValueError(
            f"tuning.held_out_images is {count}, but train has {len(images)} images; name fewer of them"
        )
    return sorted(images, key=lambda image_id: seed_of("held out", image_id))[:count]


def held_out(expressions: pd.DataFrame, count: int) -> pd.DataFrame:
    """The train expressions of ``count`` images, the same ones whatever is trained; all datasets' together.

    Raises:
        ValueError: train has no more images than that.
    """
    images = _held_out_images(expressions, count)
    return expressions[(expressions["split"] == "train") & expressions["image_id"].isin(images)]


def without_held_out(expressions: pd.DataFrame, count: int) -> pd.DataFrame:
    """The expressions of all other images; everything where ``count`` is 0."""
    if count == 0:
        return expressions
    return expressions[~expressions["image_id"].isin(_held_out_images(expressions, count))]
