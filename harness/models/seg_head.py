"""The head that turns a ``[SEG]`` state into a prompt of SAM's mask decoder, and how it starts."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

__all__ = ["fit_start", "make_seg_head"]


def make_seg_head(width: int, prompt_width: int) -> nn.Sequential:
    """LISA's and GLaMM's ``text_hidden_fcs``: ``[m, width]`` states to ``[m, prompt_width]`` prompts."""
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, prompt_width))


@torch.no_grad()
def fit_start(head: nn.Sequential, states: Tensor, wanted: Tensor) -> None:
    """Data-dependent start of a ``[SEG]`` head (Salimans and Kingma 2016, section 3).

    Over ``states [m, H]`` the first layer's outputs get zero mean and unit variance, the last layer's
    the mean and variance of the prompts ``wanted [n, C]``. Else what all ``[SEG]`` states share, which is
    nearly all of them before training, drowns what tells one expression from another.
    """
    first, activation, last = cast(tuple[nn.Linear, nn.ReLU, nn.Linear], tuple(head))
    zero, one = torch.zeros(first.out_features), torch.ones(first.out_features)
    inputs = states
    for layer, mean, spread in ((first, zero, one), (last, wanted.mean(0), wanted.std(0, correction=0))):
        out = layer(inputs)
        gain = spread.to(out) / out.std(0).clamp(min=1e-6)
        layer.weight.mul_(gain[:, None])
        layer.bias.copy_((layer.bias - out.mean(0)) * gain + mean.to(out))
        inputs = activation(layer(inputs))
