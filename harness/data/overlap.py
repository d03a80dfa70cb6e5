"""Photographs that one dataset trains on and another holds out: RefCOCO, + and g share COCO's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from harness.data.refer import ReferDataset
from harness.data.tables import is_held_out

__all__ = ["overlap_table", "pool_note"]


def overlap_table(datasets: Mapping[str, ReferDataset]) -> pd.DataFrame:
    """What training on each dataset sees of every held-out split, by image id; no image is opened.

    Args:
        datasets: by name.

    Returns:
        ``train_dataset``, ``held_out`` (``dataset/split``, and ``any`` for all of them together, which
        ``train_pool: clean`` drops), ``images`` and ``expressions`` of the train split that are shared,
        ``train_images`` and ``train_expressions`` in all, and ``held_out_images``.
    """
    held: dict[str, set[int]] = {}
    for name, data in datasets.items():
        for ref in data.refs:
            if is_held_out(ref.split):
                held.setdefault(f"{name}/{ref.split}", set()).add(ref.image_id)
    held["any"] = set().union(*held.values())
    out = []
    for name, data in datasets.items():
        train = [ref for ref in data.refs if ref.split == "train"]
        for place, images in held.items():
            shared = [ref for ref in train if ref.image_id in images]
            out.append(
                {
                    "train_dataset": name,
                    "held_out": place,
                    "images": len({ref.image_id for ref in shared}),
                    "expressions": sum(len(ref.sentences) for ref in shared),
                    "train_images": len({ref.image_id for ref in train}),
                    "train_expressions": sum(len(ref.sentences) for ref in train),
                    "held_out_images": len(images),
                }
            )
    return pd.DataFrame(out)


def pool_note(summary: Mapping[str, Any]) -> str | None:
    """One sentence for a report on what the train pool shares with held-out splits; ``None``: nothing.

    Args:
        summary: of prepared tables.
    """
    pool = summary["train_pool"]
    shared = pool.get("held_out_too", {"images": 0})
    if not shared["images"]:
        return None
    parts = "; ".join(
        f"{name}: {counts['images']:,} images, {counts['expressions']:,} expressions"
        for name, counts in shared["by_dataset"].items()
    )
    if pool["mode"] == "clean":
        return f"Train pool clean: what stands in a held-out split of any dataset is left out ({parts})."
    return (
        f"Train pool joint: {shared['images']:,} train images also stand in a held-out split of some dataset "
        f"({parts}); `train_pool: clean` leaves them out."
    )
