"""Which expressions a study predicts and a protocol scores."""

from __future__ import annotations

import pandas as pd

from harness.config import ProtocolConfig
from harness.draws import generator_from_names

__all__ = ["SENTENCES_PER_IMAGE", "evaluated", "sample_expressions", "select"]

SENTENCES_PER_IMAGE = 3  # GLaMM's num_classes_per_sample


def evaluated(expressions: pd.DataFrame, splits: tuple[str, ...]) -> pd.DataFrame:
    """The expressions of the evaluated splits, ordered by dataset, split, image, ref and sentence.

    Raises:
        ValueError: a named split holds no expression.
    """
    names = expressions["dataset"] + "/" + expressions["split"]
    wanted = set(splits) if splits else set(names[expressions["split"] != "train"])
    unknown = wanted - set(names)
    if unknown:
        known = ", ".join(sorted(set(names)))
        raise ValueError(f"splits: there is no {', '.join(sorted(unknown))} in the data; there are {known}")
    order = ["dataset", "split", "image_id", "ref_id", "sent_id"]
    return expressions[names.isin(wanted)].sort_values(order, ignore_index=True)


def sample_expressions(rows: pd.DataFrame, seed: int) -> pd.DataFrame:
    """At most three expressions an image, as GLaMM's evaluation draws them without a seed.

    What is drawn in a split hangs on that split's expressions and the seed alone, not on their order.

    Args:
        rows: has ``EXPRESSION_KEY`` and ``image_id``; whole splits.
        seed: of the draw.

    Returns:
        The drawn rows, in the order of ``rows``.
    """
    chosen: list[pd.Index] = []
    for (dataset, split), part in rows.groupby(["dataset", "split"], sort=True):
        ordered = part.sort_values(["image_id", "ref_id", "sent_id"])
        draw = generator_from_names("glamm-3sent", seed, dataset, split).random(len(ordered))
        rank = pd.Series(draw, ordered.index).groupby(ordered["image_id"]).rank(method="first")
        chosen.append(rank.index[rank <= SENTENCES_PER_IMAGE])
    return rows[rows.index.isin([k for index in chosen for k in index])]


def select(rows: pd.DataFrame, protocol: ProtocolConfig) -> pd.DataFrame:
    """The expressions of whole splits that a protocol scores, in the order of ``rows``."""
    return sample_expressions(rows, protocol.sample_seed) if protocol.name == "glamm-3sent" else rows
