"""The tiny models' optimiser against a singular value decomposition."""

import numpy as np
import pytest
import torch
from torch import nn

from harness.pretraining.optimise import Muon, optimise, orthogonalised, split_matrices


@pytest.mark.parametrize("shape", [(12, 12), (8, 20), (20, 8)])
def test_orthogonalised_keeps_the_singular_vectors_and_levels_the_values(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    u, _, vt = np.linalg.svd(matrix.numpy().astype(np.float64), full_matrices=False)
    # In the bases of the singular vectors what comes out is diagonal, with values near 1.
    seen = u.T @ orthogonalised(matrix).numpy() @ vt.T
    off = seen - np.diag(np.diag(seen))
    assert np.abs(off).max() < 1e-4
    assert 0.5 < np.diag(seen).min() and np.diag(seen).max() < 1.3


def test_a_first_muon_step_goes_by_its_rate_whatever_the_gradient_s_size():
    steps = []
    for size in (1e-3, 1e3):
        weight = nn.Parameter(torch.zeros(6, 6))
        weight.grad = size * torch.eye(6)
        Muon([weight], lr=0.1).step()
        steps.append(weight.detach())
    torch.testing.assert_close(steps[0], steps[1])
    # against the gradient, about 0.1 along every direction
    values = -torch.diag(steps[0])
    assert (values > 0.05).all() and (values < 0.13).all()


def test_muon_sums_momentum_as_plain_loops_do():
    weight, start = nn.Parameter(torch.zeros(3, 3)), torch.zeros(3, 3)
    optimizer, average = Muon([weight], lr=0.1, momentum=0.9), torch.zeros(3, 3)
    generator = torch.Generator().manual_seed(1)
    for _ in range(3):
        gradient = torch.randn(3, 3, generator=generator)
        weight.grad = gradient.clone()
        optimizer.step()
        average = 0.9 * average + 0.1 * gradient
        start = start - 0.1 * orthogonalised(0.1 * gradient + 0.9 * average)
    torch.testing.assert_close(weight.detach(), start)


def test_split_leaves_no_parameter_out_and_takes_none_twice():
    blocks, head = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)), nn.Linear(4, 2)
    matrices, others = split_matrices(blocks, blocks, head)
    assert [p.shape for p in matrices] == [(4, 4)]
    everything = [*blocks.parameters(), *head.parameters()]
    assert {id(p) for p in [*matrices, *others]} == {id(p) for p in everything}
    assert len(matrices) + len(others) == len(everything)


def test_optimise_trains_matrices_and_the_rest():
    torch.manual_seed(0)
    layer, goal = nn.Linear(4, 4), 0.3 * torch.randn(4, 4)

    def step_loss(_, rng):
        inputs = torch.from_numpy(rng.normal(size=(16, 4))).float()
        loss = (layer(inputs) - inputs @ goal.T - 1).square().mean()
        return loss, {}

    summary = optimise("line", [layer.bias], 200, 0.05, step_loss, 0, [layer.weight])
    assert summary["loss"] < 0.05
    torch.testing.assert_close(layer.weight.detach(), goal, atol=0.2, rtol=0)
    torch.testing.assert_close(layer.bias.detach(), torch.ones(4), atol=0.2, rtol=0)
