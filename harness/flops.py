"""Counts floating-point operations of a call, a multiplication and an addition as two."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

__all__ = ["count_flops"]


def count_flops(function: Callable[..., Any], *arguments: Any, **options: Any) -> int:
    """Operations of the matrix products, convolutions and attentions that one call executes.

    Element-wise operations, normalisations, sorting and sampling at fractional positions are not
    counted, as is usual.

    Args:
        function: what to call, for instance a projector.
        *arguments: passed on.
        **options: passed on.
    """
    # Without gradients, attention in eval mode takes a fused path that the counter does not see.
    with torch.enable_grad(), FlopCounterMode(display=False) as counter:
        function(*arguments, **options)
    return int(counter.get_total_flops())
