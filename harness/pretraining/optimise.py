"""The short training loop of the tiny models."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from tqdm import tqdm

from harness.seeds import numpy_generator

__all__ = ["Muon", "optimise", "orthogonalised", "split_matrices"]

_MUON_RATE = 0.02


class Muon(torch.optim.Optimizer):
    """Momentum, orthogonalised by Newton-Schulz iterations (Jordan 2024, github.com/KellerJordan/Muon).

    ``torch.optim.Muon`` iterates in bfloat16, which takes eight times as long as float32 on a CPU without
    such units: longer than the forward and backward pass of a tiny encoder.
    """

    def __init__(self, matrices: list[nn.Parameter], lr: float, momentum: float = 0.95):
        """Train ``[out, in]`` matrices with Nesterov momentum."""
        super().__init__(matrices, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """One update of every matrix that has a gradient."""
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                average = self.state[p].setdefault("momentum", torch.zeros_like(p))
                average.lerp_(p.grad, 1 - group["momentum"])
                update = orthogonalised(p.grad.lerp(average, group["momentum"]))
                p.add_(update, alpha=-group["lr"] * max(1.0, p.shape[0] / p.shape[1]) ** 0.5)


def orthogonalised(matrix: Tensor) -> Tensor:
    """``matrix [a, b]`` with its singular values brought near 1, by five quintic iterations."""
    wide = matrix if matrix.shape[0] <= matrix.shape[1] else matrix.T
    x = wide / wide.norm().clamp(min=1e-7)
    for _ in range(5):
        gram = x @ x.T
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x if matrix.shape[0] <= matrix.shape[1] else x.T


def split_matrices(blocks: nn.Module, *others: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """The ``[out, in]`` weights of transformer ``blocks``, and every other parameter of ``others``."""
    matrices = [p for p in blocks.parameters() if p.ndim == 2]
    taken = {id(p) for p in matrices}
    return matrices, [p for module in others for p in module.parameters() if id(p) not in taken]


def optimise(
    name: str,
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    step_loss: Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]],
    seed: int,
    matrices: list[nn.Parameter] | None = None,
) -> dict[str, float]:
    """AdamW, or Muon for ``matrices``, with a one-cycle schedule.

    Args:
        name: of the progress bar and the random stream.
        parameters: what AdamW trains.
        steps: optimiser steps.
        rate: AdamW's peak learning rate.
        step_loss: ``(step, rng)`` to the loss and values to log.
        seed: of the random stream.
        matrices: hidden ``[out, in]`` weights, which Muon brings further in as many steps.

    Returns:
        The mean of each logged value over the last tenth of the steps.
    """
    optimizers: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98), fused=True)
    ]
    if matrices:
        optimizers.append(Muon(matrices, _MUON_RATE))
        parameters = [*parameters, *matrices]
    schedules = [
        torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            optimizer.param_groups[0]["lr"],
            total_steps=steps + 1,
            pct_start=0.15,
            cycle_momentum=False,
        )
        for optimizer in optimizers
    ]
    history: list[dict[str, float]] = []
    bar = tqdm(range(steps), desc=f"pretrain {name}", mininterval=5)
    for step in bar:
        for optimizer in optimizers:
            optimizer.zero_grad(set_to_none=True)
        loss, values = step_loss(step, numpy_generator("pretrain", name, seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        for optimizer, schedule in zip(optimizers, schedules, strict=True):
            optimizer.step()
            schedule.step()
        history.append({"loss": loss.item(), **values})
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items()}, refresh=False)
    tail = history[-max(1, steps // 10) :]
    return {key: round(float(np.mean([h[key] for h in tail])), 4) for key in tail[0]}
