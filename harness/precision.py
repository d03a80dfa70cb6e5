"""Where half precision would choose otherwise."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor

__all__ = ["without_autocast"]


def without_autocast(tensor: Tensor) -> AbstractContextManager[object]:
    """A context in which products on the device of ``tensor`` are taken in the dtypes of their factors.

    Under autocast a product of two float32 matrices is taken in bfloat16, whose 8 bits tell neither near
    cosines nor neighbouring cells apart.
    """
    kind = tensor.device.type
    if not torch.amp.is_autocast_available(kind):  # the meta device has none
        return nullcontext()
    return torch.autocast(kind, enabled=False)
