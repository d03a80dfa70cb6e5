"""Every patch, pooled and shuffled patches: against numbers worked out from each description."""

from __future__ import annotations

import math

import pytest
import torch
from answers import LANGUAGE, WIDTH, adaptive_mean, check, image, linear, make, mlp, norm, run
from einops import rearrange, reduce

from harness.plugins.discovery import load_projector
from harness.projector import Interface


def test_linear():
    projector, state = make("linear")
    check(run(projector, image()), linear(image().patches.numpy(), state, "linear"))


def test_mlp():
    projector, state = make("mlp")
    check(run(projector, image()), mlp(image().patches.numpy(), state))


@pytest.mark.parametrize(("grid", "budget", "size"), [((4, 4), 4, (2, 2)), ((5, 7), None, (3, 4))])
def test_average_pooling(grid, budget, size):
    projector, state = make("avg_pool", grid, budget)
    x = image(grid).patches.numpy()
    check(run(projector, image(grid)), [mlp(adaptive_mean(one, grid, size), state) for one in x])


def test_pixel_shuffle():
    projector, state = make("pixel_shuffle", (4, 6), 6)
    x = rearrange(image((4, 6)).patches.numpy(), "b (h p w q) d -> b (h w) (p q d)", h=2, p=2, w=3, q=2)
    check(run(projector, image((4, 6))), mlp(norm(x, state, "norm"), state))


def test_pixel_shuffle_linear():
    projector, state = make("pixel_shuffle_linear", (6, 6), 4)
    x = rearrange(image((6, 6)).patches.numpy(), "b (h p w q) d -> b (h w) (p q d)", h=2, p=3, w=2, q=3)
    check(run(projector, image((6, 6))), linear(x, state, "linear"))
    assert "linear.bias" not in state


def test_m3_pools_after_the_mlp_and_trains_on_all_scales():
    projector, state = make("m3", (8, 8))
    after = mlp(image((8, 8)).patches.numpy(), state)
    budgets = projector.training_budgets(0, torch.Generator())
    assert sorted(budgets) == [1, 4, 16, 64]
    for budget in budgets:
        p = math.isqrt(64 // budget)
        pooled = reduce(after, "b (h p w q) d -> b (h w) d", "mean", h=8 // p, p=p, q=p, w=8 // p)
        check(run(projector, image((8, 8)), budget=budget), pooled)


def test_m3_has_the_published_scales_on_the_published_grid():
    projector = load_projector("m3")(Interface(WIDTH, LANGUAGE, (24, 24)))
    assert sorted(projector.training_budgets(0, torch.Generator())) == [1, 9, 36, 144, 576]
