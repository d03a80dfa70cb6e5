"""Unpacks archives from strangers: every member is looked at before the first is written."""

from __future__ import annotations

import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from tqdm import tqdm

from harness.files import atomic_path

__all__ = ["unpack"]

_KEEP_FREE = 1 << 28  # bytes left on the disk


@dataclass(frozen=True)
class _Member:
    name: str
    size: int
    crc: int | None  # zip only
    open: Callable[[], IO[bytes]]


def unpack(archive: Path | str, target: Path | str, *, progress: bool = True) -> list[Path]:
    """Unpack a zip or tar archive; interrupted, it goes on with what is missing.

    Refused, before anything is written: absolute paths, paths that leave ``target``, two members for
    one file, links and devices, and more bytes than the disk has room for. Directories outside of any
    file are not made.

    Args:
        archive: ``.zip``, ``.tar``, ``.tar.gz``, ``.tgz`` …
        target: folder to unpack into.
        progress: show a progress bar on stderr.

    Returns:
        The files of the archive, in its order.

    Raises:
        ValueError: it is no whole archive, or it is refused.
    """
    archive, target = Path(archive), Path(target)
    target.mkdir(parents=True, exist_ok=True)
    try:
        with _members(archive) as members:
            places = _places(archive, target.resolve(), members)
            missing = [(m, p) for m, p in zip(members, places, strict=True) if not _is_there(m, p)]
            needed = sum(m.size for m, _ in missing)
            free = shutil.disk_usage(target).free - _KEEP_FREE
            if needed > free:
                raise ValueError(
                    f"{archive} unpacks to {needed:,} bytes, but {target} has room for {max(free, 0):,}; "
                    "free some space"
                )
            for member, place in tqdm(
                missing, desc=f"unpack {archive.name}", unit="file", mininterval=5, disable=not progress
            ):
                with atomic_path(place) as aside, member.open() as source, aside.open("wb") as stream:
                    shutil.copyfileobj(source, stream, 1 << 20)
    except (zipfile.BadZipFile, tarfile.TarError, EOFError, zlib.error, NotImplementedError) as error:
        raise ValueError(f"{archive} is no whole archive ({error}); delete it and fetch it again") from error
    return places


@contextmanager
def _members(archive: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as opened:
            yield [_zip_member(opened, info) for info in opened.infolist() if not info.is_dir()]
    else:
        with tarfile.open(archive) as opened_tar:
            infos = [info for info in opened_tar.getmembers() if not info.isdir()]
            yield [_tar_member(archive, opened_tar, info) for info in infos]


def _zip_member(opened: zipfile.ZipFile, info: zipfile.ZipInfo) -> _Member:
    kind = info.external_attr >> 28  # the top bits of a Unix mode
    if kind not in (0, 8):
        raise ValueError(f"{opened.filename} holds a link or device ({info.filename}); do not use it")
    return _Member(info.filename, info.file_size, info.CRC, lambda: opened.open(info))


def _tar_member(archive: Path, opened: tarfile.TarFile, info: tarfile.TarInfo) -> _Member:
    if not info.isfile():
        raise ValueError(f"{archive} holds a link or device ({info.name}); do not use it")

    def read() -> IO[bytes]:
        stream = opened.extractfile(info)
        assert stream is not None
        return stream

    return _Member(info.name, info.size, None, read)


def _places(archive: Path, target: Path, members: list[_Member]) -> list[Path]:
    places = []
    for member in members:
        path = PurePosixPath(member.name.replace("\\", "/"))
        place = (target / path).resolve()
        drive = ":" in path.parts[0] if path.parts else True
        if path.is_absolute() or ".." in path.parts or drive or not place.is_relative_to(target):
            raise ValueError(f"{archive} would write outside its folder ({member.name}); do not use it")
        places.append(place)
    if len(set(places)) < len(places):
        double = next(p for k, p in enumerate(places) if p in places[:k])
        raise ValueError(f"{archive} holds {double.name} twice; do not use it")
    return places


def _is_there(member: _Member, place: Path) -> bool:
    if not place.is_file() or place.stat().st_size != member.size or member.crc is None:
        return False
    crc = 0
    with place.open("rb") as stream:
        while chunk := stream.read(1 << 20):
            crc = zlib.crc32(chunk, crc)
    return crc == member.crc
