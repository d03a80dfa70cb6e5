"""Looks at raw data and says, one line a finding, what is wrong with them and how to mend it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.data.options import ReferData, ReferSet, expand_root
from harness.data.prepare import index_images
from harness.data.readers import read_dataset
from harness.data.refer import ReferDataset
from harness.data.sources import EXPECTED, MISTAKEN, find_sources

__all__ = ["Finding", "check_data", "check_sources"]


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        check: what, and what was found.
        status: ``ok``; ``missing`` or ``wrong``, which a run would stumble over; ``note``, which it would
            not.
        mend: what to do about it, empty where nothing is to be done.
    """

    check: str
    status: Literal["ok", "missing", "wrong", "note"]
    mend: str = ""


def check_data(data: ReferData) -> list[Finding]:
    """Files, counts of every split against the known ones, and whether every image is there.

    Args:
        data: the data of a study.
    """
    try:
        root = expand_root(data.root)
    except ValueError as error:
        return [Finding(f"data root: {error}", "missing", _fetch(data, "DATA", data.root))]
    if not root.is_dir():
        return [Finding(f"data root {root} is no folder", "missing", _fetch(data, str(root), data.root))]
    findings = []
    folders = {name: index_images(root / name) for name in data.image_dirs}
    files = {name for folder in folders.values() for name in folder}
    if data.image_dir in folders and not folders[data.image_dir]:
        mend = f"svp data fetch coco --root {root}"
        findings.append(Finding(f"{root / data.image_dir} holds no image", "missing", mend))
    for part in data.datasets:
        absent = [path for path in part.paths if not (root / path).exists()]
        if absent:
            findings += [
                Finding(f"{root / p} is not there", "missing", _fetch_one(part, root)) for p in absent
            ]
            continue
        try:
            read = read_dataset(root, part)
        except ValueError as error:
            findings.append(Finding(f"{part.name}: {error}", "wrong", _fetch_one(part, root)))
            continue
        findings += [_check_split(part, read, split, root) for split in part.splits]
        findings.append(_check_images(part, read, files, root))
    return findings


def _check_split(part: ReferSet, read: ReferDataset, split: str, root: Path) -> Finding:
    refs = [ref for ref in read.refs if ref.split == split]
    name = f"{part.name} ({part.split_by}) {split}"
    if not refs:
        return Finding(
            f"{name}: no such split; there is {', '.join(read.splits)}", "wrong", _fetch_one(part, root)
        )
    found = {
        "refs": len(refs),
        "images": len({ref.image_id for ref in refs}),
        "expressions": sum(len(ref.sentences) for ref in refs),
    }
    text = f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in found.items())
    if part.sample:
        return Finding(f"{text}, a sample", "note", "its scores are no benchmark numbers")
    known = EXPECTED.get((part.place, part.split_by, split))
    if known is None:
        return Finding(text, "note", "no count is known to hold this against")
    apart = [
        f"{count:,} {what}" for what, count in known.model_dump().items() if count not in (None, found[what])
    ]
    if not apart:
        return Finding(text, "ok")
    poured = MISTAKEN.get((part.place, split, found["refs"]))
    why = f"this copy pours {poured} together; " if poured else ""
    return Finding(f"{text}, but known are {', '.join(apart)}", "wrong", why + _fetch_one(part, root))


def _check_images(part: ReferSet, read: ReferDataset, files: set[str], root: Path) -> Finding:
    wanted = {ref.image_id for ref in read.refs if ref.split in part.splits}
    names = {read.images[i].file_name.rsplit("/", 1)[-1] for i in wanted}
    missing = sorted(names - files)
    text = f"{part.name}: {len(names) - len(missing):,} of {len(names):,} images are there"
    if not missing:
        return Finding(text, "ok")
    source = "reasonseg" if part.format == "reasonseg" else "coco"
    mend = f"svp data fetch {source} --root {root}"
    return Finding(f"{text}; {missing[0]} is the first that is not", "missing", mend)


def check_sources(root: Path | str, names: list[str]) -> list[Finding]:
    """What is there of the named sources, without reading it.

    Args:
        root: the data root.
        names: sources of the manifest.
    """
    root = Path(root)
    findings = []
    for name in names:
        source = find_sources()[name]
        absent = [path for path in source.holds if not (root / path).exists()]
        if absent:
            mend = f"svp data fetch {name} --root {root}" + (
                f" (by hand: {source.page})" if source.page else ""
            )
            findings.append(Finding(f"{name}: {', '.join(absent)} not below {root}", "missing", mend))
            continue
        kinds = Counter(p.suffix for p in (root / source.holds[0]).rglob("*") if p.is_file())
        count = kinds[".jpg"]
        if source.images is not None and count != source.images:
            text = f"{name}: {count:,} of {source.images:,} photographs"
            findings.append(Finding(text, "wrong", f"svp data fetch {name} --root {root}"))
        else:
            findings.append(Finding(f"{name}: {source.title}", "ok"))
    return findings


def _source_of(part: ReferSet) -> str:
    if part.format != "refer":
        return part.format
    return part.place if part.place in find_sources() else ""


def _fetch_one(part: ReferSet, root: Path) -> str:
    name = _source_of(part)
    return f"svp data fetch {name} --root {root}" if name else f"put {', '.join(part.paths)} below {root}"


def _fetch(data: ReferData, root: str, setting: str) -> str:
    names = list(dict.fromkeys(filter(None, map(_source_of, data.datasets))))
    names += ["coco"] if data.image_dir in data.image_dirs else []
    variable = setting.removeprefix("${").removesuffix("}")
    then = f"; then export {variable}={root}" if setting.startswith("${") else ""
    return f"svp data fetch {' '.join(names)} --root {root}{then}, or --config data_root=FOLDER"
