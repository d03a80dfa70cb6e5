"""A machine's GPUs: what torch can use of them, and which of them a job has to itself. Imports torch late.

Snakemake only counts GPUs. So a job takes cards of its own before it starts torch, which would otherwise
be at the first card in every job.
"""

from __future__ import annotations

import fcntl
import os
import sys
from pathlib import Path
from typing import TextIO

__all__ = ["claim_cards", "count_cards", "require_gpus", "torch_build", "usable_gpus"]

_LOCKS = Path("work") / "locks"
# Locks of this process's cards: they are given back when it ends.
_held: list[TextIO] = []


def count_cards(devices: Path = Path("/dev")) -> int:
    """NVIDIA cards of this machine, as the driver names them; torch is not asked."""
    return len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])


def claim_cards(count: int, *, cards: int | None = None) -> None:
    """Take cards that no other job of this folder has, until this process ends, and show it no others.

    ``CUDA_VISIBLE_DEVICES`` is left alone where it is set, as Slurm sets it, and on a machine with one card.
    Where the file system has no locks all jobs see all cards, and the job says so.

    Args:
        count: cards that the job asks for.
        cards: cards of the machine; default: :func:`count_cards`.

    Raises:
        ValueError: fewer than ``count`` are free; the message names the processes that hold the others.
    """
    if count == 0 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    cards = count_cards() if cards is None else cards
    if cards <= 1 or count > cards:  # require_gpus tells of the latter
        return
    _LOCKS.mkdir(parents=True, exist_ok=True)
    taken: dict[int, TextIO] = {}
    holders: list[str] = []
    for index in range(cards):
        if len(taken) == count:
            break
        stream = (_LOCKS / f"gpu-{index}").open("a+")
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            stream.seek(0)
            holders.append(stream.read().strip() or "unknown")
            stream.close()
            continue
        except OSError as error:
            _give_back([stream, *taken.values()])
            sys.stderr.write(
                f"{(_LOCKS / f'gpu-{index}').resolve()} cannot be locked ({error.strerror}): nothing keeps "
                "several jobs from one GPU; set CUDA_VISIBLE_DEVICES, or mount the file system with flock\n"
            )
            return
        stream.truncate(0)
        stream.write(f"{os.getpid()} on {os.uname().nodename}")
        stream.flush()
        taken[index] = stream
    if len(taken) < count:
        _give_back([*taken.values()])
        raise ValueError(
            f"the job asks for {count} of {cards} GPUs and {len(taken)} are free, the others are held by "
            f"process {', '.join(holders)} ({_LOCKS}/gpu-*); let it end, or stop it and run again"
        )
    _held.extend(taken.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, taken))


def _give_back(streams: list[TextIO]) -> None:
    for stream in streams:
        stream.close()


def usable_gpus() -> int:
    """CUDA devices that torch can use: none with a driver too old for it, whatever the driver counts."""
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def torch_build() -> str:
    """Version of torch, and the CUDA that it was built for."""
    import torch

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
