"""What torch can use of a machine's GPUs, for jobs that ask for some. Imports torch."""

from __future__ import annotations

import torch

__all__ = ["require_gpus", "torch_build", "usable_gpus"]


def usable_gpus() -> int:
    """CUDA devices that torch can use: none with a driver too old for it, whatever the driver counts."""
    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def torch_build() -> str:
    """Version of torch, and the CUDA that it was built for."""
    return f"torch {torch.__version__} ({f'CUDA {torch.version.cuda}' if torch.version.cuda else 'CPU only'})"


def require_gpus(count: int) -> None:
    """See to it that a job gets the GPUs that it asks for, before it trains for weeks on the CPU.

    Args:
        count: GPUs; with 0 it runs wherever it is.

    Raises:
        ValueError: there are fewer.
    """
    found = usable_gpus()
    if found >= count:
        return
    if found:
        raise ValueError(f"training.processes is {count}, this machine has {found} GPUs; set it to {found}")
    raise ValueError(
        f"models.gpu is on and {torch_build()} finds no GPU that it can use on this machine; run "
        "`svp doctor STUDY` there and install a torch that fits its driver, or set models.gpu: false"
    )
