"""Clocks that wait for the device, calls that take turns, and FLOPs of the plain arithmetic."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from typing import TypeVar

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops", "device_name", "median_seconds", "peak_rates", "timed"]

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
