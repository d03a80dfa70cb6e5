"""Mask losses of LISA and GLaMM: binary cross-entropy and Dice, averaged over expressions."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

__all__ = ["bce_loss", "dice_loss"]


def bce_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None) -> Tensor:
    """Mean over expressions of the mean binary cross-entropy over pixels.

    Args:
        logits: ``[m, h, w]``.
        target: ``[m, h, w]`` in 0..1.
        valid: ``[m, h, w]`` bool; padding is left out.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    weight = torch.ones_like(loss) if valid is None else valid.flatten(1).to(loss.dtype)
    return _weighted_mean(loss, weight).mean()


def _weighted_mean(loss: Tensor, weight: Tensor) -> Tensor:
    return (loss * weight).sum(1) / weight.sum(1).clamp(min=1)


def dice_loss(logits: Tensor, target: Tensor, valid: Tensor | None = None, smooth: float = 1.0) -> Tensor:
    """Mean over expressions of ``1 - (2 |p t| + s) / (|p| + |t| + s)`` on probabilities.

    LISA scales both areas by 1000 and smooths by 1e-6; a smoothing of one pixel has the same optimum
    and no vanishing gradient on small targets.
    """
    probability = logits.sigmoid()
    if valid is not None:
        probability = probability * valid
        target = target * valid
    probability, target = probability.flatten(1), target.flatten(1)
    overlap = (probability * target).sum(1)
    return (1 - (2 * overlap + smooth) / (probability.sum(1) + target.sum(1) + smooth)).mean()
