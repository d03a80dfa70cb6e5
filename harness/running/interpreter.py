"""What a job's interpreter need not do: of a job's seconds before and after its work, nearly half."""

from __future__ import annotations

import atexit
import gc
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["leave_at_once", "quick_imports"]


@contextmanager
def quick_imports() -> Iterator[None]:
    """Import without looking for garbage: torch and transformers make millions of objects and hardly any."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def leave_at_once(status: int | None) -> None:
    """End a job whose files are written and closed, without taking every module apart first."""
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status or 0)
