"""The short training loop of the tiny models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.seeds import numpy_generator

__all__ = ["optimise"]


def optimise(
    name: str,
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    step_loss: Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]],
    seed: int,
) -> dict[str, float]:
    """AdamW with a one-cycle schedule; returns the mean of each logged value over the last tenth."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.15)
    history: list[dict[str, float]] = []
    bar = tqdm(range(steps), desc=f"pretrain {name}", mininterval=5)
    for step in bar:
        optimizer.zero_grad(set_to_none=True)
        loss, values = step_loss(step, numpy_generator("pretrain", name, seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append({"loss": loss.item(), **values})
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items()}, refresh=False)
    tail = history[-max(1, steps // 10) :]
    return {key: round(float(np.mean([h[key] for h in tail])), 4) for key in tail[0]}
