"""The prepared tables that every later stage reads, checked when they are loaded."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from harness.data.options import expand_root
from harness.files import atomic_path, read_json, write_json

__all__ = ["Tables", "check_leakage", "is_held_out", "load_tables", "write_tables"]

# What docs/architecture.md promises; a text column is "str".
COLUMNS: dict[str, dict[str, str]] = {
    "images": {"image_id": "int64", "path": "str", "width": "int64", "height": "int64", "sha256": "str"},
    "annotations": {
        "dataset": "str", "ann_id": "int64", "image_id": "int64", "category": "str", "caption": "str",
        "area": "int64", "x": "float64", "y": "float64", "w": "float64", "h": "float64", "rle": "str",
        "height": "int64", "width": "int64",
    },
    "expressions": {
        "dataset": "str", "split": "str", "ref_id": "int64", "sent_id": "int64", "ann_id": "int64",
        "image_id": "int64", "sentence": "str", "phenomenon": "str", "category": "str",
        "distractors": "int64",
    },
}  # fmt: skip
_KEYS = {
    "images": ["image_id"],
    "annotations": ["dataset", "ann_id"],
    "expressions": ["dataset", "split", "ref_id", "sent_id"],
}
_LEARNT = ("train", "pool")


@dataclass(frozen=True)
class Tables:
    """The prepared tables of a study's data.

    Attributes:
        images: one row an image.
        annotations: one row an annotated object and dataset.
        expressions: one row a referring expression.
        summary: counts, and where the images lie.
        folder: where the tables were read from.
    """

    images: pd.DataFrame
    annotations: pd.DataFrame
    expressions: pd.DataFrame
    summary: dict[str, Any] = field(default_factory=dict)
    folder: Path = Path()

    @property
    def image_root(self) -> Path:
        """The folder that ``images.path`` is relative to."""
        root = expand_root(str(self.summary["image_root"]))
        return root if root.is_absolute() else (self.folder / root).resolve()

    def image_path(self, image_id: int) -> Path:
        """The file of an image.

        Raises:
            KeyError: there is no such image.
        """
        rows = self.images.loc[self.images["image_id"] == image_id, "path"]
        if rows.empty:
            raise KeyError(f"{self.folder}/images.parquet has no image {image_id}")
        return self.image_root / rows.iloc[0]

    def select(self, dataset: str, split: str) -> pd.DataFrame:
        """The expressions of one dataset and split, in the order of ``sent_id``.

        Raises:
            ValueError: there are none; the message names what there is.
        """
        known = self.expressions[["dataset", "split"]].drop_duplicates()
        rows = self.expressions.query("dataset == @dataset and split == @split")
        if rows.empty:
            pairs = ", ".join(f"{d}/{s}" for d, s in known.itertuples(index=False))
            raise ValueError(f"{self.folder} has no split {dataset}/{split}; it has {pairs}")
        return rows.sort_values("sent_id").reset_index(drop=True)


def write_tables(folder: Path | str, frames: Mapping[str, pd.DataFrame], summary: dict[str, Any]) -> None:
    """Write the three tables and ``summary.json``, each atomically, the summary last.

    Further frames in ``frames`` are written too, and further columns of the three are kept.
    """
    folder = Path(folder)
    for name, frame in frames.items():
        if name in COLUMNS:
            kinds = {c: k for c, k in COLUMNS[name].items() if k != "str"}
            frame = frame.astype(kinds)[[*COLUMNS[name], *(c for c in frame if c not in COLUMNS[name])]]
        with atomic_path(folder / f"{name}.parquet") as aside:
            frame.to_parquet(aside, index=False)
    write_json(folder / "summary.json", summary)


def load_tables(prepared_dir: Path | str) -> Tables:
    """Read and check the tables below a folder.

    Raises:
        ValueError: a table is missing, unreadable, lacks a column, repeats a key, or points at a row
            that is not there; the message names file and mend.
    """
    folder = Path(prepared_dir)
    if not (folder / "summary.json").is_file():
        raise ValueError(f"{folder} holds no finished tables (no summary.json); run the prepare stage")
    frames = {name: _load(folder / f"{name}.parquet", name) for name in COLUMNS}
    known_images = set(frames["images"]["image_id"])
    for name in ("annotations", "expressions"):
        strays = set(frames[name]["image_id"]) - known_images
        if strays:
            raise ValueError(
                f"{folder}/{name}.parquet names images {sorted(strays)[:3]} that images.parquet lacks"
            )
    pairs = pd.MultiIndex.from_frame(frames["annotations"][["dataset", "ann_id"]])
    wanted = pd.MultiIndex.from_frame(frames["expressions"][["dataset", "ann_id"]])
    if not wanted.isin(pairs).all():
        raise ValueError(f"{folder}/expressions.parquet refers to annotations that annotations.parquet lacks")
    return Tables(**frames, summary=read_json(folder / "summary.json"), folder=folder)


def _load(path: Path, name: str) -> pd.DataFrame:
    try:
        frame = pd.read_parquet(path)
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} cannot be read ({error}); run the prepare stage again") from error
    missing = [c for c in COLUMNS[name] if c not in frame]
    if missing:
        raise ValueError(f"{path} lacks the columns {missing}; it is of another version: run prepare again")
    for column, kind in COLUMNS[name].items():
        whole = pd.api.types.is_integer_dtype(frame[column])
        fine = {"int64": whole, "float64": pd.api.types.is_float_dtype(frame[column])}.get(kind, not whole)
        if not fine or frame[column].isna().any():
            raise ValueError(f"{path}: column {column} is not whole {kind}; run the prepare stage again")
    if frame.duplicated(_KEYS[name]).any():
        raise ValueError(f"{path} repeats a key ({', '.join(_KEYS[name])}); run the prepare stage again")
    return frame


def is_held_out(split: str) -> bool:
    """Whether a model must not have been trained on this split's images: any but ``train`` and ``pool``."""
    return split not in _LEARNT


def check_leakage(tables: Tables) -> pd.DataFrame:
    """Images that stand in a train split and in a held-out split of any dataset.

    Images are the same if their id is, or if their file's bytes are.

    Args:
        tables: the prepared tables.

    Returns:
        One row a leak: ``image_id`` and ``train_dataset`` of the train side, ``held_out_id``,
        ``held_out_dataset`` and ``held_out_split`` of the other, ``by`` (``image_id`` or ``sha256``).
    """
    uses = tables.expressions[["dataset", "split", "image_id"]].drop_duplicates()
    uses = uses.merge(tables.images[["image_id", "sha256"]], on="image_id")
    train = uses[uses["split"] == "train"].rename(columns={"dataset": "train_dataset"}).drop(columns="split")
    held = uses[uses["split"].map(is_held_out).astype(bool)].rename(
        columns={"dataset": "held_out_dataset", "split": "held_out_split", "image_id": "held_out_id"}
    )
    both = train.merge(held, on="sha256")
    both["by"] = "sha256"
    both.loc[both["image_id"] == both["held_out_id"], "by"] = "image_id"
    columns = ["image_id", "train_dataset", "held_out_id", "held_out_dataset", "held_out_split", "by"]
    return both[columns].sort_values(columns).reset_index(drop=True)


def refuse_shared(prepared: Tables, pool: Tables) -> None:
    """Refuse a pretraining pool that holds an image of the prepared data.

    Raises:
        ValueError: the same bytes stand in both.
    """
    shared = set(prepared.images["sha256"]) & set(pool.images["sha256"])
    if shared:
        raise ValueError(
            f"{pool.folder} shares {len(shared)} images with {prepared.folder}; take another seed"
        )
