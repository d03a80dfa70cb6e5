"""Seeds derived from names: the same data order for every projector, another for every repetition."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterator

import numpy as np
import torch

__all__ = ["deterministic", "forked_rng", "numpy_generator", "seed_of", "torch_generator"]


def seed_of(*names: object) -> int:
    """A 63-bit seed: sha256 of the names joined."""
    text = "/".join(str(name) for name in names)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def numpy_generator(*names: object) -> np.random.Generator:
    """A numpy generator seeded by names."""
    return np.random.default_rng(seed_of(*names))


def torch_generator(*names: object) -> torch.Generator:
    """A CPU generator seeded by names."""
    return torch.Generator().manual_seed(seed_of(*names))


@contextlib.contextmanager
def forked_rng(*names: object) -> Iterator[None]:
    """Torch's global state seeded by names inside the block and restored after it.

    For code that cannot be handed a generator: dropout and the initialisation of layers.
    """
    # Left to itself torch would start every card of the machine, in each process.
    devices = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed_of(*names))
        yield


def deterministic(threads: int) -> None:
    """The same bits in every run of this process: deterministic kernels, and a fixed number of threads.

    Weights differ in bits between numbers of threads.
    """
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Else every new tensor is first filled with NaN: a tenth of a training step, to show who reads it unset.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
