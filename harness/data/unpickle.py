"""Reads pickles from strangers: plain values only, nothing is ever looked up or called."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

__all__ = ["UnsafePickleError", "load_plain_pickle"]


class UnsafePickleError(ValueError):
    """A pickle asks for something that is not plain data."""


class _PlainUnpickler(pickle.Unpickler):
    """Every way from a pickle to code leads through ``find_class`` or ``persistent_load``."""

    def __init__(self, data: bytes, name: str):
        # latin1 maps each byte of a Python 2 str to a character: it cannot fail, and REFER's files need it.
        super().__init__(io.BytesIO(data), encoding="latin1")
        self._name = name

    def find_class(self, module: str, name: str) -> Any:
        raise UnsafePickleError(
            f"{self._name} asks for {module}.{name}, but a REFER file holds plain values only; "
            "do not use this file, fetch it again from a source you trust"
        )

    def persistent_load(self, pid: Any) -> Any:
        raise UnsafePickleError(
            f"{self._name} asks for the persistent object {str(pid)[:40]!r}, but a REFER file holds plain "
            "values only; do not use this file, fetch it again from a source you trust"
        )


def load_plain_pickle(path: Path | str) -> Any:
    """The value in a pickle that holds dict, list, tuple, str, bytes, int, float, bool and None alone.

    Args:
        path: the file; Python 2 pickles are read as latin-1.

    Raises:
        UnsafePickleError: it names any global; nothing was imported or called.
        ValueError: it is truncated or no pickle.
    """
    path = Path(path)
    try:
        return _PlainUnpickler(path.read_bytes(), path.name).load()
    except UnsafePickleError:
        raise
    except (pickle.UnpicklingError, EOFError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            MemoryError, OverflowError) as error:  # fmt: skip
        raise ValueError(f"{path} is no whole pickle ({error}); fetch it again") from error
