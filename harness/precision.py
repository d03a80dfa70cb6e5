"""Where half precision would choose otherwise."""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(tensor: Tensor) -> torch.autocast:
    """A context in which products on the device of ``tensor`` are taken in the dtypes of their factors.

    Under autocast a product of two float32 matrices is taken in bfloat16, whose 8 bits tell neither near
    cosines nor neighbouring cells apart.
    """
    return torch.autocast(tensor.device.type, enabled=False)
