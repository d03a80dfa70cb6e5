"""Local projectors against numbers worked out from each description, or torchvision's block."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from answers import (
    LANGUAGE,
    WIDTH,
    adaptive_mean,
    attend,
    check,
    depthwise,
    image,
    linear,
    make,
    mlp,
    norm,
    run,
    sigmoid,
    silu,
    softmax,
)
from einops import rearrange
from timm.layers import LayerNormAct2d

from harness.plugins.discovery import load_projector
from harness.projector import Interface


def bottleneck(maps, state, key):
    y = maps
    for conv, activate in (("conv1", True), ("conv2", True), ("conv3", False)):
        if conv == "conv3":
            squeezed = y.mean((0, 1))
            gate = squeezed @ state[f"{key}.se.fc1.weight"][:, :, 0, 0].T + state[f"{key}.se.fc1.bias"]
            gate = silu(gate) @ state[f"{key}.se.fc2.weight"][:, :, 0, 0].T + state[f"{key}.se.fc2.bias"]
            y = y * sigmoid(gate)
        weight = state[f"{key}.{conv}.conv.weight"]
        y = depthwise(y, weight) if conv == "conv2" else y @ weight[:, :, 0, 0].T
        y = norm(y, state, f"{key}.{conv}.bn")
        y = silu(y) if activate else y
    return silu(maps + y)


def test_c_abstractor():
    projector, state = make("c_abstractor", (5, 4), depth=2)
    expected = []
    for x in image((5, 4)).patches.numpy():
        maps = (x + state["positions"][0]).reshape(5, 4, WIDTH)
        for block in ("before.b1", "before.b2"):
            maps = bottleneck(maps, state, block)
        maps = adaptive_mean(maps.reshape(20, WIDTH), (5, 4), (3, 2)).reshape(3, 2, WIDTH)
        for block in ("after.b1", "after.b2"):
            maps = bottleneck(maps, state, block)
        expected.append(mlp(maps.reshape(6, WIDTH), state, activation=silu))
    check(run(projector, image((5, 4))), expected)


def bilinear(maps, x, y):
    """Value of ``[h, w, d]`` at the point ``x, y`` in 0..1, zero outside."""
    h, w, d = maps.shape
    column, row, value = x * w - 0.5, y * h - 0.5, np.zeros(d)
    for i in (math.floor(row), math.floor(row) + 1):
        for j in (math.floor(column), math.floor(column) + 1):
            if 0 <= i < h and 0 <= j < w:
                value += maps[i, j] * (1 - abs(row - i)) * (1 - abs(column - j))
    return value


def test_d_abstractor():
    heads, points = 2, 3
    projector, state = make("d_abstractor", (4, 6), layers=2, heads=heads, points=points)
    size = WIDTH // heads
    expected = []
    for patches in image((4, 6)).patches.numpy():
        features = patches + state["positions"][0]
        places = adaptive_mean(features, (4, 6), (2, 3))
        x = state["targets"]
        for index in range(2):
            key = f"layers.{index}"
            placed = x + places
            x = x + attend(placed, placed, x, state, f"{key}.self_attention", heads)
            x = norm(x, state, f"{key}.norms.0")
            cross = f"{key}.cross_attention"
            offsets = linear(x + places, state, f"{cross}.offsets").reshape(-1, heads, points, 2)
            weights = softmax(linear(x + places, state, f"{cross}.weights").reshape(-1, heads, points))
            maps = linear(features, state, f"{cross}.value").reshape(4, 6, heads, size)
            read = np.zeros((len(x), heads, size))
            for query, head, point in np.ndindex(len(x), heads, points):
                at = state["references"][query] + offsets[query, head, point] / [6, 4]
                read[query, head] += weights[query, head, point] * bilinear(maps[:, :, head], *at)
            x = norm(
                x + linear(read.reshape(len(x), WIDTH), state, f"{cross}.output"), state, f"{key}.norms.1"
            )
            fed = linear(np.maximum(linear(x, state, f"{key}.hidden"), 0), state, f"{key}.output")
            x = norm(x + fed, state, f"{key}.norms.2")
        expected.append(linear(x, state, "output"))
    check(run(projector, image((4, 6))), expected, 1e-4)


def test_d_abstractor_starts_from_a_uniform_grid_and_a_ring_of_offsets():
    projector = load_projector("d_abstractor")(Interface(64, LANGUAGE, (24, 24)))
    references = projector.references.detach().reshape(12, 12, 2)
    steps = [(0.5 + i * 23 / 11) / 24 for i in range(12)]
    np.testing.assert_allclose(references[0, :, 0], steps, rtol=1e-6)
    np.testing.assert_allclose(references[:, 0, 1], steps, rtol=1e-6)
    attention = projector.layers[0].cross_attention
    offsets = attention.offsets.bias.detach().reshape(8, 4, 2)
    for head, point in np.ndindex(8, 4):
        direction = np.array([math.cos(head * math.pi / 4), math.sin(head * math.pi / 4)])
        expected = direction / abs(direction).max() * (point + 1)
        np.testing.assert_allclose(offsets[head, point], expected, atol=1e-5)
    assert not attention.offsets.weight.any() and not attention.weights.weight.any()


@pytest.mark.parametrize("grid", [(4, 4), (5, 3)])
def test_ldp_is_the_mobilenet_block_of_torchvision(grid):
    mobilenet = pytest.importorskip("torchvision.models.mobilenetv3")
    excitation = pytest.importorskip("torchvision.ops").SqueezeExcitation
    width = 16
    cls = load_projector("ldp")
    projector = cls(Interface(WIDTH, width, grid)).double().eval()
    with torch.no_grad():
        for parameter in projector.parameters():
            noise = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(parameter.numel()))
            parameter.copy_(0.4 * noise)
    blocks = torch.nn.Sequential(
        *(
            mobilenet.InvertedResidual(
                mobilenet.InvertedResidualConfig(width, 3, width, width, True, "HS", stride, 1, 1),
                partial(LayerNormAct2d, act_layer=None),
                partial(excitation, scale_activation=torch.nn.Hardsigmoid),
            )
            for stride in (1, 2)
        )
    ).double()
    ours, theirs = list(projector.blocks.parameters()), list(blocks.parameters())
    assert [p.shape for p in ours] == [p.shape for p in theirs]
    with torch.no_grad():
        for mine, other in zip(ours, theirs, strict=True):
            other.copy_(mine)
        state = {key: value.numpy() for key, value in projector.state_dict().items()}
        after = torch.tensor(mlp(image(grid).patches.numpy(), state))
        out = blocks(rearrange(after, "b (h w) d -> b d h w", h=grid[0]))
    check(run(projector, image(grid)), rearrange(out, "b d h w -> b (h w) d").numpy())


def test_ldpv2():
    projector, state = make("ldpv2", (4, 6))
    expected = []
    for x in mlp(image((4, 6)).patches.numpy(), state):
        maps = adaptive_mean(x, (4, 6), (2, 3)).reshape(2, 3, LANGUAGE)
        maps = maps + depthwise(maps, state["position.weight"], bias=state["position.bias"])
        expected.append(maps.reshape(6, LANGUAGE))
    check(run(projector, image((4, 6))), expected)


def test_token_packer():
    projector, state = make("token_packer", (6, 6), 4, head_width=4)
    features = image((6, 6))
    levels = np.concatenate([level.numpy() for level in features.levels], -1)
    expected = []
    for x, level in zip(features.patches.numpy(), levels, strict=True):
        maps = x.reshape(6, 6, WIDTH)
        keys = norm(mlp(level, state, "key"), state, "key_norm", 1e-6).reshape(6, 6, WIDTH)
        values = norm(mlp(level, state, "value"), state, "value_norm", 1e-6).reshape(6, 6, WIDTH)
        out = []
        for i in range(2):
            for j in range(2):
                # Bilinear sampling at stride 3 reads the patch in the middle of the block.
                query = norm(linear(maps[3 * i + 1, 3 * j + 1], state, "query"), state, "query_norm", 1e-6)
                block = (slice(3 * i, 3 * i + 3), slice(3 * j, 3 * j + 3))
                k, v = keys[block].reshape(9, WIDTH), values[block].reshape(9, WIDTH)
                out.append(attend(query[None], k, v, state, "attention", 2)[0])
        expected.append(mlp(np.array(out), state))
    check(run(projector, features), expected, 1e-5)
