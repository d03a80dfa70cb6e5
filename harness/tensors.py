"""Tensors on disk: safetensors, written aside and renamed, hashed, refused by name when damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from harness.files import atomic_path

__all__ = ["load_tensors", "save_tensors"]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 over names, types, shapes and bytes, in the order of names."""
    found = hashlib.sha256()
    for name, tensor in sorted(tensors.items()):
        found.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def save_tensors(path: Path | str, tensors: Mapping[str, Tensor]) -> None:
    """Write ``tensors`` to ``path``, atomically, with their hash."""
    held = {k: v.detach().contiguous().cpu() for k, v in tensors.items()}
    with atomic_path(path) as aside:
        save_file(held, aside, {"sha256": _digest(held)})


def load_tensors(path: Path | str, mend: str) -> dict[str, Tensor]:
    """The tensors of a file.

    Args:
        path: a safetensors file; its hash is checked where :func:`save_tensors` wrote one.
        mend: what to do when it cannot be read, for the message.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is cut short, changed since it was written, or no safetensors file.
    """
    if not Path(path).is_file():
        raise FileNotFoundError(f"{path} is not there; {mend}")
    try:
        with safe_open(path, framework="pt") as stream:
            tensors = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
            written = (stream.metadata() or {}).get("sha256")
    except SafetensorError as error:
        raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
    if written is not None and written != _digest(tensors):
        raise ValueError(f"{path} holds other bytes than were written to it; {mend}")
    return tensors
