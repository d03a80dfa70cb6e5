"""Small inputs, and the layers that known answers are built from, worked out in numpy.

Weights are random in every parameter, so that a swapped norm, order or head shows. Arithmetic is in
double precision; the implementations' single-precision parts set the tolerance where they have any.
"""

from __future__ import annotations

import math

import numpy as np
import torch

from harness.plugins.discovery import load_projector
from harness.projector import ImageFeatures, Interface

WIDTH, HEADS, LANGUAGE = 8, 4, 12


def make(name, grid=(4, 4), budget=None, seed=0, **options):
    """A projector in double precision with random parameters, and its state as arrays."""
    cls = load_projector(name)
    interface = Interface(WIDTH, LANGUAGE, grid, budget, level_count=2)
    projector = cls(interface, cls.Config(**options)).double().eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.copy_(0.4 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return projector, {key: value.numpy() for key, value in projector.state_dict().items()}


def image(grid=(4, 4), batch=2, seed=1, **given):
    """Random features of the encoder; ``given`` ones as they are."""
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid[0] * grid[1], WIDTH)

    def noise():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def keys():
        return noise().unflatten(-1, (HEADS, -1)).transpose(1, 2)

    def attention(total):
        return total * (2 * noise()[..., 0]).softmax(-1)

    features = {"patches": noise(), "levels": (noise(), noise()), "keys": keys(), "last_keys": keys()}
    features |= {"cls_attention": attention(HEADS), "last_cls_attention": attention(0.8)}
    return ImageFeatures(grid=grid, **(features | given))


def run(projector, features, **options):
    with torch.no_grad():
        return [tokens.numpy() for tokens in projector(features, **options).split()]


def check(tokens, expected, tolerance=1e-9):
    assert len(tokens) == len(expected)
    for ours, theirs in zip(tokens, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, atol=tolerance, rtol=tolerance)


# The layers that the answers are built from.


def linear(x, state, key):
    bias = state.get(f"{key}.bias", 0.0)
    return x @ state[f"{key}.weight"].T + bias


def gelu(x):
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


def silu(x):
    return x * sigmoid(x)


def mlp(x, state, key="mlp", activation=gelu):
    return linear(activation(linear(x, state, f"{key}.0")), state, f"{key}.2")


def norm(x, state, key, epsilon=1e-5):
    """LayerNorm over the last axis."""
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + epsilon)
    return scaled * state[f"{key}.weight"] + state[f"{key}.bias"]


def softmax(x):
    powers = np.exp(x - x.max(-1, keepdims=True))
    return powers / powers.sum(-1, keepdims=True)


def attend(queries, keys, values, state, key, heads, apart=None):
    """Multi-head attention, head by head: ``[k, w]``, ``[n, ...]``, ``[n, ...]`` to ``[k, w]``."""
    if f"{key}.in_proj_weight" in state:
        weights = np.split(state[f"{key}.in_proj_weight"], 3)
    else:
        weights = [state[f"{key}.{part}_proj_weight"] for part in "qkv"]
    biases = np.split(state[f"{key}.in_proj_bias"], 3)
    q, k, v = (x @ w.T + b for x, w, b in zip((queries, keys, values), weights, biases, strict=True))
    size = q.shape[-1] // heads
    outputs = []
    for head in range(heads):
        part = slice(head * size, (head + 1) * size)
        scores = q[:, part] @ k[:, part].T / math.sqrt(size)
        if apart is not None:
            scores = np.where(apart, -np.inf, scores)
        outputs.append(softmax(scores) @ v[:, part])
    return linear(np.concatenate(outputs, -1), state, f"{key}.out_proj")


def sincos(grid, width):
    """MAE's table, position by position: sines and cosines of the column, then of the row."""
    table = []
    for row in range(grid[0]):
        for column in range(grid[1]):
            vector = []
            for place in (column, row):
                angles = [place / 10000 ** (i / (width / 4)) for i in range(width // 4)]
                vector += [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
            table.append(vector)
    return np.array(table)


def cubic_resize(table, grid, size):
    """Bicubic interpolation with Keys' kernel (a = -0.75) at cell centres, edges repeated."""

    def kernel(x, a=-0.75):
        x = abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * (x**3 - 5 * x**2 + 8 * x - 4) if x < 2 else 0.0

    def matrix(old, new):
        rows = np.zeros((new, old))
        for i in range(new):
            centre = (i + 0.5) * old / new - 0.5
            for j in range(math.floor(centre) - 1, math.floor(centre) + 3):
                rows[i, min(max(j, 0), old - 1)] += kernel(centre - j)
        return rows

    maps = table.reshape(*grid, -1)
    return np.einsum("ih,jw,hwd->ijd", matrix(grid[0], size[0]), matrix(grid[1], size[1]), maps).reshape(
        size[0] * size[1], -1
    )


def adaptive_mean(x, grid, size):
    """Mean over rows floor(i h / H) .. ceil((i + 1) h / H) and columns alike."""
    maps, out = x.reshape(*grid, -1), []
    for i in range(size[0]):
        for j in range(size[1]):
            rows = slice(i * grid[0] // size[0], -(-(i + 1) * grid[0] // size[0]))
            columns = slice(j * grid[1] // size[1], -(-(j + 1) * grid[1] // size[1]))
            out.append(maps[rows, columns].mean((0, 1)))
    return np.array(out)


def depthwise(maps, weight, stride=1, bias=None):
    """Depth-wise 3x3 convolution of ``[h, w, d]`` with zero padding."""
    h, w, d = maps.shape
    padded = np.pad(maps, ((1, 1), (1, 1), (0, 0)))
    out = np.zeros((-(-h // stride), -(-w // stride), d))
    for i in range(out.shape[0]):
        for j in range(out.shape[1]):
            window = padded[i * stride : i * stride + 3, j * stride : j * stride + 3]
            out[i, j] = (window * weight[:, 0].transpose(1, 2, 0)).sum((0, 1))
    return out if bias is None else out + bias


def pointwise(maps, state, key):
    return maps @ state[f"{key}.weight"][:, :, 0, 0].T + state.get(f"{key}.bias", 0.0)
