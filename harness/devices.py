"""A machine's GPUs: what torch can use of them, and which of them a job has to itself. Imports torch late.

Snakemake only counts GPUs. So a job takes cards of its own before it starts torch, which would otherwise
be at the first card in every job.
"""

from __future__ import annotations

import fcntl
import os
import sys
import time
from pathlib import Path
from typing import TextIO

__all__ = ["claim_cards", "count_cards", "require_gpus", "torch_build", "usable_gpus"]

_LOCKS = Path("work") / "locks"
# Locks of this process's cards: they are given back when it ends.
_held: list[TextIO] = []


def count_cards(devices: Path = Path("/dev")) -> int:
    """NVIDIA cards of this machine, as the driver names them; torch is not asked."""
    return len([path for path in devices.glob("nvidia*") if path.name.removeprefix("nvidia").isdigit()])


def claim_cards(count: int, *, cards: int | None = None, poll_s: float = 5) -> None:
    """Take cards that no other job of this folder has, until this process ends, and show it no others.

    Where too few are free it waits: Snakemake starts as many jobs as there are cores for, if nobody tells it
    how many GPUs there are. ``CUDA_VISIBLE_DEVICES`` is left alone where it is set, as Slurm sets it. Where
    the file system has no locks all jobs see all cards, and the job says so.

    Args:
        count: cards that the job asks for.
        cards: cards of the machine; default: :func:`count_cards`.
        poll_s: seconds from one look to the next.
    """
    if count == 0 or "CUDA_VISIBLE_DEVICES" in os.environ:
        return
    cards = count_cards() if cards is None else cards
    if count > cards:  # require_gpus tells of it
        return
    _LOCKS.mkdir(parents=True, exist_ok=True)
    waiting = ""
    try:
        while (taken := _free_cards(count, cards)) is None:
            if (holders := _holders(cards)) != waiting:
                waiting = holders
                sys.stderr.write(
                    f"waiting for {count} of {cards} GPUs, of which process {holders} holds some "
                    f"({_LOCKS}/gpu-*); it ends, or is to be stopped\n"
                )
            time.sleep(poll_s)
    except OSError as error:
        sys.stderr.write(
            f"{_LOCKS.resolve()}/gpu-* cannot be locked ({error.strerror}): nothing keeps several jobs from "
            "one GPU; set CUDA_VISIBLE_DEVICES, or mount the file system with flock\n"
        )
        return
    _held.extend(taken.values())
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, taken))


def _free_cards(count: int, cards: int) -> dict[int, TextIO] | None:
    """Locks of ``count`` cards by number; ``None``, and none is held, where fewer are free."""
    taken: dict[int, TextIO] = {}
    # One job looks at a time: two that each ask for several never hold what the other waits for.
    with (_LOCKS / "gpus").open("a") as looking:
        fcntl.flock(looking, fcntl.LOCK_EX)
        for index in range(cards):
            if len(taken) == count:
                break
            stream: TextIO = _card(index).open("a+")
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                stream.close()
                continue
            stream.truncate(0)
            stream.write(f"{os.getpid()} on {os.uname().nodename}")
            stream.flush()
            taken[index] = stream
        if len(taken) == count:
            return taken
        for stream in taken.values():
            stream.truncate(0)
            stream.close()
        return None


def _card(index: int) -> Path:
    return _LOCKS / f"gpu-{index}"


def _holders(cards: int) -> str:
    said = [_card(index).read_text().strip() for index in range(cards) if _card(index).is_file()]
    return ", ".join(dict.fromkeys(filter(None, said)))


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
