"""How a command of the ``svp`` program answers: one JSON value, or text, on standard output."""

from __future__ import annotations

import json
import sys
from typing import Any

__all__ = ["answer"]


def answer(value: Any, as_json: bool, text: str = "") -> None:
    """Write ``value`` as one JSON value, or else ``text``, and a line's end."""
    sys.stdout.write((json.dumps(value, indent=2) if as_json else text) + "\n")
