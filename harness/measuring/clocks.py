"""Clocks that wait for the device, calls that take turns, and FLOPs of the plain arithmetic."""

from __future__ import annotations

import statistics
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import TypeVar

import pandas as pd
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode
from tqdm import tqdm

__all__ = [
    "TRAIN",
    "Batch",
    "Calls",
    "Member",
    "Timed",
    "count_flops",
    "device_name",
    "median_seconds",
    "peak_rates",
    "time_in_turns",
    "timed",
]

TRAIN = -1  # the "batch size" of a training step

_T = TypeVar("_T")


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def timed(call: Callable[[], _T], device: torch.device) -> tuple[float, _T]:
    """Seconds that a call takes on ``device``, and what it gives."""
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return time.perf_counter() - start, result


def median_seconds(
    calls: Mapping[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, float]:
    """Median seconds of each call, one round of all after the other: a busy machine slows all alike.

    A first round, not timed, warms up.
    """
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            seconds = timed(call, device)[0]
            if number:
                samples[name].append(seconds)
    return {name: statistics.median(values) for name, values in samples.items()}


def count_flops(call: Callable[[], object]) -> float:
    """Floating-point operations of a call, a multiplication and an addition as two.

    Matrix products, convolutions and attentions count; element-wise operations, normalisations, sorting,
    pairwise distances and sampling at fractional positions do not, as torch's counter has it. Fused
    attention kernels count as zero, so the plain one, which does the same arithmetic, runs here. Gradients
    are on: without them attention in eval mode takes a path that the counter does not see, and it trips
    over views of parameters.
    """
    with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        call()
    return float(counter.get_total_flops())


Batch = list[pd.DataFrame]
Calls = dict[str, Callable[[], object]]


@dataclass
class Timed:
    """What was found, by stage and batch: milliseconds, one a case or a round; FLOPs of each case; bytes."""

    samples: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    flops: dict[tuple[str, int], list[float]] = field(default_factory=dict)
    peak: dict[tuple[str, int], int] = field(default_factory=dict)


class Member(ABC):
    """One that takes its turn.

    Attributes:
        cases: batches of expressions, grouped by image, by batch size; ``TRAIN`` is a training step's.
        found: where its times go.
        countable: whether torch can count its FLOPs.
    """

    cases: dict[int, list[Batch]]
    found: Timed
    countable: bool = True

    @property
    def weight_bytes(self) -> int | None:
        """Bytes of its model, for the peak of memory; ``None`` where that is not asked."""
        return None

    @abstractmethod
    def calls(self, batch: int, groups: Batch) -> Calls:
        """The calls to time, by stage; their input is computed here."""

    def on(self, device: torch.device) -> AbstractContextManager[None]:
        """Its weights on the device for a while."""
        return nullcontext()


def _warm_up(member: Member, batch: int, calls: Calls, device: torch.device) -> None:
    """First calls, which are not timed: peak memory and FLOPs."""
    for stage, work in calls.items():
        work()
        if device.type == "cuda" and member.weight_bytes is not None:
            # Inputs of other rows lie there too: what counts is this model, and what the call adds.
            before = torch.cuda.memory_allocated(device)
            torch.cuda.reset_peak_memory_stats(device)
            work()
            added = torch.cuda.max_memory_allocated(device) - before + member.weight_bytes
            member.found.peak[stage, batch] = max(added, member.found.peak.get((stage, batch), 0))
        # torch's counter cannot follow a backward pass through frozen inputs
        if batch != TRAIN and member.countable:
            member.found.flops.setdefault((stage, batch), []).append(count_flops(work))


def time_in_turns(
    members: Sequence[Member], rounds: Mapping[int, int], what: str, device: torch.device
) -> None:
    """Time all members side by side: for each case of each batch size, some rounds in which all take a turn.

    Of several cases each gives one sample, the median of its rounds; of a single one each round does. So
    the n-th sample of two members is of the same case, or of the same round. What is added up or compared
    must be timed in one call: machines drift from one minute to the next.

    Args:
        members: each takes its turn at the batch sizes that it has, as many cases as all of them have.
        rounds: how often each call of a batch size is timed.
        what: named on the progress bar.
        device: what the clock waits for.
    """
    for batch in dict.fromkeys(batch for member in members for batch in member.cases):
        here = [member for member in members if batch in member.cases]
        cases = min(len(member.cases[batch]) for member in here)
        learning = batch == TRAIN
        named = "training step" if learning else f"batch {batch}"
        for case in tqdm(range(cases), desc=f"time {what}, {named}", mininterval=5):
            calls: list[Calls] = []
            for member in here:
                with member.on(device), torch.set_grad_enabled(learning):
                    calls.append(member.calls(batch, member.cases[batch][case]))
                    _warm_up(member, batch, calls[-1], device)
            found: list[dict[str, list[float]]] = [{stage: [] for stage in own} for own in calls]
            for _ in range(rounds[batch]):
                for member, own, times in zip(here, calls, found, strict=True):
                    with member.on(device), torch.set_grad_enabled(learning):
                        for stage, work in own.items():
                            times[stage].append(1e3 * timed(work, device)[0])
            for member, times in zip(here, found, strict=True):
                for stage, values in times.items():
                    samples = [statistics.median(values)] if cases > 1 else values
                    member.found.samples.setdefault((stage, batch), []).extend(samples)


def peak_rates(dtype: torch.dtype, device: torch.device) -> tuple[float, float]:
    """FLOP/s of a large matrix product and bytes/s of a large copy, measured here and now."""
    size = 768 if device.type == "cpu" else 8192
    a = torch.randn(size, size, dtype=dtype, device=device)
    product = min(timed(lambda: a @ a, device)[0] for _ in range(5))
    big = torch.zeros(16_000_000 if device.type == "cpu" else 500_000_000, dtype=torch.uint8, device=device)
    copied = min(timed(big.clone, device)[0] for _ in range(5))
    return 2 * size**3 / product, 2 * big.numel() / copied


def device_name(device: torch.device) -> str:
    """As tables name it: the GPU's own name, or the CPU with its threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"cpu, {torch.get_num_threads()} thread{'s' if torch.get_num_threads() > 1 else ''}"
