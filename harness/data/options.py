"""What data a study uses, as config: synthetic scenes or a folder in REFER layout. Import-light."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Literal

from pydantic import Field, model_validator

from harness.strict import Strict

__all__ = [
    "SYNTHETIC_DATASETS",
    "SYNTHETIC_SPLITS",
    "DataOptions",
    "ReferData",
    "ReferSet",
    "SyntheticData",
    "expand_root",
]

_VARIABLE = re.compile(r"\$(?:\{(\w+)\}|(\w+))")


def expand_root(root: str) -> Path:
    """``root`` with each ``${NAME}`` or ``$NAME`` replaced by that environment variable, and ``~``.

    Raises:
        ValueError: a variable is unset; the message names it.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name)
        if not found:
            raise ValueError(f"{root} needs the environment variable {name}; set it to the folder")
        return found

    return Path(_VARIABLE.sub(value, root)).expanduser()


SYNTHETIC_DATASETS = ("synthref", "synthref+", "synthrefg")
# Datasets that have a split: testA and testB are those of RefCOCO and RefCOCO+, test that of RefCOCOg.
SYNTHETIC_SPLITS = {
    "train": SYNTHETIC_DATASETS,
    "val": SYNTHETIC_DATASETS,
    "testA": SYNTHETIC_DATASETS[:2],
    "testB": SYNTHETIC_DATASETS[:2],
    "test": SYNTHETIC_DATASETS[2:],
}


class SyntheticData(Strict):
    """Synthetic referring scenes, written in REFER format and read back by the same reader.

    Attributes:
        kind: tells this block from :class:`ReferData`.
        seed: every image, scene and expression follows from it.
        image_size: side of the square images, pixels.
        domain: look of the scenes: ``shapes``, or ``blobs`` (wobbly outlines, other colours and
            textures, lower contrast) for cross-domain studies.
        train_images: images of ``train``, shared by the three datasets.
        val_images: images of ``val``, shared by the three datasets.
        testA_images: images of ``testA`` (targets: animate categories; synthref, synthref+).
        testB_images: images of ``testB`` (targets: the other categories; synthref, synthref+).
        test_images: images of ``test`` (synthrefg).
        pool_images: images of the pretraining pool, in no split.
        objects: fewest and most objects a scene; counts are spread evenly.
        train_expressions: fewest and most expressions a train or pool image and dataset.
        eval_expressions: fewest and most expressions an evaluation image and dataset.
        location_share: share of synthref's expressions that hold a location word.
        overlap: share of the val images that are put in train too, on purpose, so that the leakage
            check has something to find; half of them under their own id, half as renamed copies.
        train_pool: ``clean`` drops train images that stand in any held-out split; ``joint`` keeps them.
    """

    kind: Literal["synthetic"] = "synthetic"
    seed: int = Field(0, ge=0)
    image_size: int = Field(96, ge=64, le=1024)
    domain: Literal["shapes", "blobs"] = "shapes"
    train_images: int = Field(1400, ge=1, le=99_999)
    val_images: int = Field(200, ge=1, le=99_999)
    testA_images: int = Field(150, ge=1, le=99_999)
    testB_images: int = Field(150, ge=1, le=99_999)
    test_images: int = Field(150, ge=1, le=99_999)
    pool_images: int = Field(1200, ge=1, le=99_999)
    objects: tuple[int, int] = (3, 10)
    train_expressions: tuple[int, int] = (4, 6)
    eval_expressions: tuple[int, int] = (3, 4)
    location_share: float = Field(0.65, ge=0, le=1)
    overlap: float = Field(0.0, ge=0, le=1)
    train_pool: Literal["joint", "clean"] = "joint"

    @property
    def split_names(self) -> tuple[str, ...]:
        """Every ``dataset/split``."""
        return tuple(f"{dataset}/{split}" for split, some in SYNTHETIC_SPLITS.items() for dataset in some)

    def pool_only(self) -> SyntheticData:
        """The same options with all that the pretraining pool does not depend on at its default."""
        kept = ("seed", "image_size", "domain", "pool_images", "objects", "train_expressions")
        return SyntheticData(**{name: getattr(self, name) for name in kept})

    @model_validator(mode="after")
    def _ordered(self) -> SyntheticData:
        for name, least in (("objects", 3), ("train_expressions", 1), ("eval_expressions", 1)):
            low, high = getattr(self, name)
            if not least <= low <= high:
                raise ValueError(
                    f"{name} is [{low}, {high}]; give [fewest, most] with {least} <= fewest <= most"
                )
        if self.objects[1] > 10:
            raise ValueError(f"objects is {list(self.objects)}; more than 10 do not fit visibly in a scene")
        return self


class ReferSet(Strict):
    """One dataset of a REFER folder.

    Attributes:
        name: its name in the prepared tables.
        split_by: who split it: the word in ``refs(<split_by>).p``.
        splits: the splits to prepare; an empty list prepares none, but its held-out images still
            count for a clean train pool.
        folder: its folder below the root, where it is not called ``name``.
        format: ``refer`` (RefCOCO, RefCOCO+, RefCOCOg), ``grefcoco`` or ``reasonseg``, whose
            ``split_by`` means nothing and whose images lie in its own folder.
        sample: it is a part of the dataset on purpose: its counts are not held against the known ones.
    """

    name: str = Field(min_length=1)
    split_by: str = Field(min_length=1)
    splits: tuple[str, ...]
    folder: str | None = None
    format: Literal["refer", "grefcoco", "reasonseg"] = "refer"
    sample: bool = False

    @property
    def place(self) -> str:
        """Its folder below the root."""
        return self.folder or self.name

    @property
    def paths(self) -> tuple[str, ...]:
        """What must lie below the root, images apart."""
        if self.format == "reasonseg":
            return tuple(f"{self.place}/{split}" for split in self.splits)
        refs = f"refs({self.split_by}).p" if self.format == "refer" else f"grefs({self.split_by}).json"
        return f"{self.place}/{refs}", f"{self.place}/instances.json"


class ReferData(Strict):
    """A folder in REFER layout: ``<root>/<dataset>/refs(<split_by>).p``, ``instances.json``, images.

    Attributes:
        kind: tells this block from :class:`SyntheticData`.
        root: the folder; ``${NAME}`` is replaced by that environment variable when the job runs.
        datasets: the datasets to prepare.
        image_dir: the folder below the root whose tree holds the image files.
        train_pool: ``clean`` drops train images that stand in any held-out split of any of the
            datasets; ``joint`` keeps them, as most publications do.
    """

    kind: Literal["refer"] = "refer"
    root: str = Field(min_length=1)
    datasets: tuple[ReferSet, ...] = Field(min_length=1)
    image_dir: str = "images"
    train_pool: Literal["joint", "clean"] = "joint"

    @property
    def split_names(self) -> tuple[str, ...]:
        """Every ``dataset/split`` that is prepared."""
        return tuple(f"{each.name}/{split}" for each in self.datasets for split in each.splits)

    @property
    def image_dirs(self) -> tuple[str, ...]:
        """Folders below the root whose trees hold image files."""
        own = [d.place for d in self.datasets if d.format == "reasonseg"]
        return (*(() if len(own) == len(self.datasets) else (self.image_dir,)), *own)

    @model_validator(mode="after")
    def _unique(self) -> ReferData:
        names = [d.name for d in self.datasets]
        doubled = sorted({n for n in names if names.count(n) > 1})
        if doubled:
            raise ValueError(
                f"dataset names {doubled} stand twice; name one of them apart and give its folder"
            )
        return self


DataOptions = SyntheticData | ReferData
