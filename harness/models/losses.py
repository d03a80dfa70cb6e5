"""Mask losses of LISA and GLaMM: binary cross-entropy and Dice, averaged over expressions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from harness.config import TrainingConfig

__all__ = ["Losses", "bce_loss", "dice_loss", "weighted_losses"]


@dataclass(frozen=True)
class Losses:
    """The weighted total and its parts (scalars)."""

    total: Tensor
    ce: Tensor
    caption: Tensor
    bce: Tensor
    dice: Tensor


def weighted_losses(
    logits: Tensor,
    ce: Tensor,
    caption: Tensor | None,
    target: Tensor,
    valid: Tensor | None,
    weights: TrainingConfig,
) -> Losses:
    """CE, BCE and Dice at the target's resolution, weighted as configured.

    Args:
        logits: ``[m, s, s]`` low resolution, in SAM's padded square frame.
        ce: cross-entropy of the answers.
        caption: loss of the captions, if any.
        target: ``[m, S, S]`` ground truth in the same frame.
        valid: ``[m, S, S]`` bool, false on padding; ``None`` where there is none.
        weights: the recipe.
    """
    full = F.interpolate(logits[:, None].float(), target.shape[-2:], mode="bilinear", align_corners=False)
    full = full[:, 0]
    bce, dice = bce_loss(full, target, valid), dice_loss(full, target, valid)
    total = weights.ce_weight * ce + weights.bce_weight * bce + weights.dice_weight * dice
    caption = torch.zeros_like(ce) if caption is None else caption
    total = total + weights.caption_weight * caption
    return Losses(total, ce.detach(), caption.detach(), bce.detach(), dice.detach())


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
