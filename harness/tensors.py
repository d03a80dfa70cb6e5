"""Tensors on disk: safetensors, written aside and renamed, refused by name when damaged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from harness.files import atomic_path

__all__ = ["load_tensors", "save_tensors"]


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``, atomically."""
    with atomic_path(path) as aside:
        save_file({k: v.detach().contiguous().cpu() for k, v in tensors.items()}, aside)


def load_tensors(path: Path | str, mend: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        path: a safetensors file.
        mend: what to do when it cannot be read, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short or no safetensors file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not there; {mend}")
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
