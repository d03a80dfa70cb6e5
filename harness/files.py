"""Atomic writes and canonical hashes."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

__all__ = ["atomic_path", "canonical_json", "digest", "file_stamp", "read_json", "sha256_file", "write_json"]


@contextlib.contextmanager
def atomic_path(target: Path | str) -> Iterator[Path]:
    """A path beside ``target`` to write to; renamed onto it when the block ends well, else removed."""
    target = Path(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.", suffix=target.suffix)
    os.close(handle)
    aside = Path(name)
    try:
        yield aside
        with aside.open("rb") as stream:
            os.fsync(stream.fileno())
        aside.chmod(0o644)
        aside.replace(target)
    finally:
        aside.unlink(missing_ok=True)


def canonical_json(value: Any) -> str:
    """``value`` as JSON with sorted keys and no spaces: equal values give equal text."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest(value: Any, length: int = 10) -> str:
    """The first ``length`` hex digits of the sha256 of ``value``'s canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:length]


def sha256_file(path: Path | str) -> str:
    """Hex sha256 of a file's bytes."""
    with Path(path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def file_stamp(path: Path) -> list[str | int]:
    """What tells a file of gigabytes from the one that lay there before: name, size and time."""
    found = path.stat()
    return [path.name, found.st_size, found.st_mtime_ns]


def read_json(path: Path | str) -> Any:
    """The JSON value in a file.

    Raises:
        ValueError: the file is not JSON; the message names it.
    """
    try:
        return json.loads(Path(path).read_text())
    except json.JSONDecodeError as error:
        raise ValueError(f"{path} is not valid JSON ({error}); delete it and run again") from error


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as indented JSON, atomically."""
    with atomic_path(path) as aside:
        aside.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
