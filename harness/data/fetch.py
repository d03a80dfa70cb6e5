"""Fetches raw data from mirrors: checked against the manifest, resumable, unpacked once.

pooch holds the checks and the retries; what it lacks, going on with half a file of 13 GB, is
:class:`ResumingDownloader`. Where the manifest knows no sha256, the first download's is written to
``archives/checksums.json`` and held to from then on, and that is said.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pooch
import requests
from tqdm import tqdm

from harness.data.archives import unpack
from harness.data.sources import RemoteFile, Source, get_source
from harness.files import read_json, sha256_file, write_json

__all__ = ["ResumingDownloader", "fetch"]

_CHUNK = 1 << 16  # what a broken connection can lose
_TIMEOUT_S = 60


class ResumingDownloader:
    """A pooch downloader that keeps what it has in ``part`` and asks the server for the rest."""

    def __init__(self, part: Path, size: int | None = None, *, progress: bool = True):
        """Download by way of a file.

        Args:
            part: half a file of an earlier try, or where to keep one.
            size: bytes to expect, where known; anything else is refused before it is downloaded.
            progress: show a progress bar on stderr.
        """
        self.part, self.size, self.progress = part, size, progress

    def __call__(self, url: str, output_file: str, pooch_: Any) -> None:
        """Bring ``url`` to ``output_file``; ``part`` is gone afterwards."""
        have = self.part.stat().st_size if self.part.is_file() else 0
        if have and have == self.size:  # killed between the last byte and the check
            shutil.move(self.part, output_file)
            return
        headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
        with requests.get(url, stream=True, timeout=_TIMEOUT_S, headers=headers) as response:
            if response.status_code == 416:  # the part is no beginning of this file
                self.part.unlink()
                raise requests.exceptions.RequestException(f"{url}: the file on the server is shorter")
            response.raise_for_status()
            if have and not self._goes_on(response, have):
                have = 0
            total = have + int(response.headers.get("Content-Length", 0))
            if self.size is not None and "Content-Length" in response.headers and total != self.size:
                raise requests.exceptions.RequestException(
                    f"{url}: {total:,} bytes are offered where the manifest says {self.size:,}"
                )
            with (
                self.part.open("ab" if have else "wb") as stream,
                tqdm(
                    desc=self.part.name.removesuffix(".part"),
                    initial=have,
                    total=total or None,
                    unit="B",
                    unit_scale=True,
                    mininterval=5,
                    disable=not self.progress,
                ) as bar,
            ):
                for chunk in response.iter_content(_CHUNK):
                    stream.write(chunk)
                    bar.update(len(chunk))
        if total and self.part.stat().st_size != total:
            raise requests.exceptions.ConnectionError(f"{url}: the connection ended early")
        shutil.move(self.part, output_file)

    @staticmethod
    def _goes_on(response: requests.Response, have: int) -> bool:
        return response.status_code == 206 and response.headers.get("Content-Range", "").startswith(
            f"bytes {have}-"
        )


def fetch(
    name: str,
    root: Path | str,
    *,
    source: Source | None = None,
    say: Callable[[str], None],
    progress: bool = True,
    retries: int = 2,
) -> None:
    """Bring one source of the manifest below ``root``; what is there and whole is not fetched again.

    Args:
        name: a name of the manifest.
        root: the data root.
        source: in place of the manifest's entry.
        say: where messages go.
        progress: show progress bars on stderr.
        retries: further tries a mirror.

    Raises:
        ValueError: no mirror gave the file, or what it gave is not what the manifest says; the message
            says where to put the file by hand.
    """
    source, root = source or get_source(name), Path(root)
    archives = root / "archives"
    archives.mkdir(parents=True, exist_ok=True)
    for file in source.files:
        if source.unpack is None or file.name != source.unpack.archive:
            _bring(file, root / file.name, archives, source.page, say, progress, retries)
            continue
        place, target = archives / file.name, root / source.unpack.into
        if not place.is_file() and _is_unpacked(place, target, file.sha256):
            continue  # the archive was deleted to save space
        checksum = _bring(file, place, archives, source.page, say, progress, retries)
        if not _is_unpacked(place, target, checksum):
            _unpack(place, target, checksum, say, progress)
    missing = [path for path in source.holds if not (root / path).exists()]
    if missing:
        raise ValueError(f"{name} was fetched, but {root / missing[0]} is not there; is it the right file?")
    say(f"{name}: {', '.join(source.holds)} below {root}")


def _bring(
    file: RemoteFile,
    place: Path,
    archives: Path,
    page: str | None,
    say: Callable[[str], None],
    progress: bool,
    retries: int,
) -> str:
    """Fetch one file if it is not there, check it, and return its sha256."""
    ledger = archives / "checksums.json"
    recorded = read_json(ledger) if ledger.is_file() else {}
    known = file.sha256 or recorded.get(file.name, {}).get("sha256")
    algorithm, value = ("sha256", known) if known else ("md5", file.md5)
    expected = f"{algorithm}:{value}" if value else None
    from_where = "put there by hand"
    if not place.is_file():
        from_where = _download(file, place, archives, expected, page, progress, retries)
    elif value and pooch.file_hash(str(place), alg=algorithm) != value:
        raise ValueError(f"{place} has another {algorithm} than {value}; delete it and fetch it again")
    found = value if algorithm == "sha256" and value else sha256_file(place)
    if file.sha256 is None and file.name not in recorded:
        write_json(ledger, {**recorded, file.name: {"sha256": found, "from": from_where}})
        say(
            f"{file.name}: no sha256 is known in advance"
            + (" (its md5 was right)" if file.md5 else "")
            + f"; {found} is recorded in {ledger} and held to from now on"
        )
    return found


def _download(
    file: RemoteFile,
    place: Path,
    archives: Path,
    expected: str | None,
    page: str | None,
    progress: bool,
    retries: int,
) -> str:
    """Try the mirrors in order; returns the one that served."""
    part = archives / f"{Path(file.name).name}.part"
    tried = []
    for url in file.urls:
        try:
            pooch.retrieve(
                url,
                known_hash=expected,
                fname=place.name,
                path=place.parent,
                downloader=_Retrying(ResumingDownloader(part, file.size, progress=progress), retries),
            )
        except (requests.exceptions.RequestException, ValueError) as error:
            tried.append(f"{url}: {_short(error)}")
        else:
            return url
    where = f" Get it at {page}." if page else ""
    why = f"no mirror gave {file.name} ({'; '.join(tried)})" if tried else f"{file.name} has no mirror"
    raise ValueError(f"{why}.{where} Put it at {place} by hand and run this again; half a file is kept")


class _Retrying:
    """Tries a broken connection again; each try goes on where the last one ended."""

    def __init__(self, downloader: ResumingDownloader, retries: int):
        self.downloader, self.retries = downloader, retries

    def __call__(self, url: str, output_file: str, pooch_: Any) -> None:
        for left in range(self.retries, -1, -1):
            try:
                return self.downloader(url, output_file, pooch_)
            except (requests.exceptions.ConnectionError, requests.exceptions.ChunkedEncodingError):
                if not left:
                    raise


def _short(error: Exception) -> str:
    return str(error).splitlines()[0][:160]


def _stamp(archive: Path) -> Path:
    return archive.with_name(f"{archive.name}.unpacked.json")


def _is_unpacked(archive: Path, target: Path, checksum: str | None) -> bool:
    """Whether an archive (of this sha256, where it is known) was unpacked and all its files are there."""
    stamp = _stamp(archive)
    if not stamp.is_file():
        return False
    done = read_json(stamp)
    return checksum in (None, done["sha256"]) and all((target / name).is_file() for name in done["files"])


def _unpack(archive: Path, target: Path, checksum: str, say: Callable[[str], None], progress: bool) -> None:
    say(f"unpacking {archive} into {target}")
    places = unpack(archive, target, progress=progress)
    names = [place.relative_to(target.resolve()).as_posix() for place in places]
    write_json(_stamp(archive), {"sha256": checksum, "files": names})
