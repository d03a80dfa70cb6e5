"""The manifest of raw data: what there is, where it is mirrored, and how many expressions it holds."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from harness.plugins.discovery import nearest

__all__ = ["EXPECTED", "MISTAKEN", "KnownSplit", "RemoteFile", "Source", "find_sources", "get_source"]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RemoteFile(_Strict):
    """One file to fetch.

    Attributes:
        name: where it goes below the data root (archives: below ``archives/``).
        size: bytes, where known.
        sha256: checksum, where known; else that of the first download is recorded and held to.
        md5: a weaker checksum, where its publisher's users agree on no other.
        urls: mirrors, tried in order; none where it can only be put there by hand.
    """

    name: str
    size: int | None = None
    sha256: str | None = Field(None, pattern="^[0-9a-f]{64}$")
    md5: str | None = Field(None, pattern="^[0-9a-f]{32}$")
    urls: tuple[str, ...]


class Unpack(_Strict):
    """Which of the files is an archive, and the folder below the data root that it is unpacked into."""

    archive: str
    into: str


class Source(_Strict):
    """One entry of ``sources.yaml``.

    Attributes:
        title: what it is, in a line.
        licence: what its publishers allow.
        files: what is fetched.
        holds: paths below the data root that are there afterwards.
        unpack: the archive among the files, if any.
        images: number of photographs below the first of ``holds``.
        page: where a person gets it, where no mirror serves it.
    """

    title: str
    licence: str
    files: tuple[RemoteFile, ...]
    holds: tuple[str, ...]
    unpack: Unpack | None = None
    images: int | None = None
    page: str | None = None

    @model_validator(mode="after")
    def _archive_is_a_file(self) -> Source:
        if self.unpack is not None and self.unpack.archive not in {f.name for f in self.files}:
            raise ValueError(f"unpack: archive {self.unpack.archive} is not among the files")
        return self


class KnownSplit(_Strict):
    """What a split is known to hold; ``None`` where no source that was read says it."""

    refs: int | None = None
    images: int | None = None
    expressions: int | None = None


# By (dataset, split_by, split). RefCOCO: counted in its files. The others: lichengunc/refer's README and
# the counts that its users print; umd refs from the row counts of its copies.
EXPECTED: dict[tuple[str, str, str], KnownSplit] = {
    ("refcoco", "unc", "train"): KnownSplit(refs=42_404),
    ("refcoco", "unc", "val"): KnownSplit(refs=3_811, images=1_500, expressions=10_834),
    ("refcoco", "unc", "testA"): KnownSplit(refs=1_975, images=750, expressions=5_657),
    ("refcoco", "unc", "testB"): KnownSplit(refs=1_810, images=750, expressions=5_095),
    ("refcoco+", "unc", "train"): KnownSplit(expressions=120_191),
    ("refcoco+", "unc", "val"): KnownSplit(expressions=10_758),
    ("refcoco+", "unc", "testA"): KnownSplit(expressions=5_726),
    ("refcoco+", "unc", "testB"): KnownSplit(expressions=4_889),
    ("refcocog", "umd", "train"): KnownSplit(expressions=80_512),
    ("refcocog", "umd", "val"): KnownSplit(refs=2_573, images=1_300, expressions=4_896),
    ("refcocog", "umd", "test"): KnownSplit(refs=5_023, images=2_600, expressions=9_602),
}

# Copies in circulation whose "val" is two splits poured together, by (dataset, split, refs).
MISTAKEN: dict[tuple[str, str, int], str] = {
    ("refcoco", "val", 8_811): "3,811 refs of unc val and 5,000 of google val",
    ("refcocog", "val", 7_573): "2,573 refs of umd val and 5,000 of google val",
}


@cache
def find_sources() -> dict[str, Source]:
    """Every source of the manifest by name."""
    raw = yaml.safe_load((Path(__file__).parent / "sources.yaml").read_text())
    return {name: Source.model_validate(value) for name, value in raw.items()}


def get_source(name: str) -> Source:
    """The source called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = find_sources()
    if name not in known:
        raise ValueError(f"there is no data source '{name}'{nearest(name, list(known))}")
    return known[name]
