"""Each projector on a small input against numbers worked out here, from its description, in numpy.

Weights are random in every parameter, so that a swapped norm, order or head shows. Arithmetic is in
double precision; the implementations' single-precision parts set the tolerance where they have any.
"""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from einops import rearrange, reduce
from timm.layers import LayerNormAct2d

from harness.discovery import load_projector
from harness.projector import ImageFeatures, Interface

WIDTH, LANGUAGE = 8, 12


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


def image(grid=(4, 4), batch=2, seed=1, attention=None):
    generator = torch.Generator().manual_seed(seed)
    shape = (batch, grid[0] * grid[1], WIDTH)

    def noise():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    patches, levels, keys = noise(), (noise(), noise()), noise()
    if attention is None:
        attention = (2 * noise()[..., 0]).softmax(-1)
    return ImageFeatures(patches, grid, levels, attention, keys)


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


# Dense, pooled and shuffled.


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


# Query resamplers.


@pytest.mark.parametrize("budget", [16, 9])
@pytest.mark.parametrize("output_projection", [False, True])
def test_qwen_resampler(budget, output_projection):
    projector, state = make(
        "qwen_resampler", budget=budget, head_width=4, output_projection=output_projection
    )
    side = math.isqrt(budget)
    table = sincos((side, side), LANGUAGE)
    expected = []
    for x in image().patches.numpy():
        values = norm(linear(x, state, "input"), state, "input_norm", 1e-6)
        keys = values + cubic_resize(table, (side, side), (4, 4))
        queries = norm(state["queries"], state, "query_norm", 1e-6) + table
        out = attend(queries, keys, values, state, "attention", LANGUAGE // 4)
        if output_projection:
            out = linear(norm(out, state, "output.0", 1e-6), state, "output.1")
        expected.append(out)
    check(run(projector, image()), expected, 1e-5)


def test_mqt():
    projector, state = make("mqt", (6, 6), head_width=4)
    table = sincos((4, 4), WIDTH)
    expected = []
    for x in image((6, 6)).patches.numpy():
        queries = norm(state["queries"] + table, state, "query_norm", 1e-6)
        keys = norm(cubic_resize(table, (4, 4), (6, 6)), state, "key_norm", 1e-6)
        values = norm(x, state, "value_norm", 1e-6)
        out = attend(queries, keys, values, state, "attention", 2)
        expected.append(out @ state["output.weight"].T)
    check(run(projector, image((6, 6))), expected, 1e-5)
    check(run(projector, image((6, 6)), budget=5), [tokens[:5] for tokens in expected], 1e-5)


def test_mqt_draws_even_counts_in_the_second_stage():
    projector, _ = make("mqt", (6, 6))
    generator = torch.Generator().manual_seed(0)
    projector.stage = 1
    assert projector.training_budgets(0, generator) == [16]
    projector.stage = 2
    drawn = [projector.training_budgets(step, generator)[0] for step in range(400)]
    assert set(drawn) == set(range(2, 17, 2))
    # 400 draws of 8: 50 each, standard deviation 6.6.
    assert all(20 < drawn.count(count) < 80 for count in set(drawn))


def test_honeybee_resampler():
    projector, state = make("honeybee_resampler", budget=3, blocks=2, head_width=4)
    expected = []
    for x in image().patches.numpy():
        features, queries = linear(x, state, "input"), state["queries"][0]
        for index in range(2):
            key = f"blocks.{index}"
            queries = norm(queries, state, f"{key}.query_norm")
            both = np.concatenate([queries, norm(features, state, f"{key}.key_norm")])
            queries = queries + attend(queries, both, both, state, f"{key}.attention", 2)
            normed = norm(queries, state, f"{key}.norm")
            gated = silu(linear(normed, state, f"{key}.gate")) * linear(normed, state, f"{key}.up")
            queries = queries + linear(norm(gated, state, f"{key}.inner_norm", 1e-6), state, f"{key}.down")
        expected.append(linear(queries, state, "output"))
    check(run(projector, image()), expected)


def test_q_former_is_the_one_of_transformers():
    transformers = pytest.importorskip("transformers")
    projector, state = make("q_former", budget=3, layers=3, head_width=4)
    config = transformers.Blip2QFormerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        encoder_hidden_size=WIDTH,
        cross_attention_frequency=2,
        use_qformer_text_input=False,
    )
    model = transformers.Blip2QFormerModel(config).double().eval()
    theirs = {f"layernorm.{k}": state[f"query_norm.{k}"] for k in ("weight", "bias")}
    for index in range(3):
        ours, layer = f"layers.{index}", f"encoder.layer.{index}"
        attentions = [("self_attention", "attention", 0)]
        if index % 2 == 0:
            attentions.append(("cross_attention", "crossattention", 1))
        for mine, other, place in attentions:
            key = f"{ours}.{mine}"
            weights = (
                np.split(state[f"{key}.in_proj_weight"], 3)
                if f"{key}.in_proj_weight" in state
                else [state[f"{key}.{part}_proj_weight"] for part in "qkv"]
            )
            biases = np.split(state[f"{key}.in_proj_bias"], 3)
            for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
                theirs[f"{layer}.{other}.attention.{part}.weight"] = weight
                theirs[f"{layer}.{other}.attention.{part}.bias"] = bias
            for kind in ("weight", "bias"):
                theirs[f"{layer}.{other}.output.dense.{kind}"] = state[f"{key}.out_proj.{kind}"]
                theirs[f"{layer}.{other}.output.LayerNorm.{kind}"] = state[f"{ours}.norms.{place}.{kind}"]
        last = 1 + (index % 2 == 0)
        for kind in ("weight", "bias"):
            theirs[f"{layer}.intermediate_query.dense.{kind}"] = state[f"{ours}.hidden.{kind}"]
            theirs[f"{layer}.output_query.dense.{kind}"] = state[f"{ours}.output.{kind}"]
            theirs[f"{layer}.output_query.LayerNorm.{kind}"] = state[f"{ours}.norms.{last}.{kind}"]
    model.load_state_dict({key: torch.tensor(value) for key, value in theirs.items()})
    features = torch.tensor(norm(image().patches.numpy(), state, "vision_norm"))
    queries = torch.tensor(state["queries"]).expand(2, -1, -1)
    with torch.no_grad():
        out = model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state.numpy()
    check(run(projector, image()), linear(out, state, "output"))


# Local.


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


# Adaptive.


def cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def prumerge(x, keys, share, kept, neighbours):
    out = []
    for i in kept:
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(keys[i], keys[j]))
        out.append(x[i] + sum(share[j] * x[j] for j in others[:neighbours]))
    out.append(sum((share[j] * x[j] for j in range(len(x)) if j not in kept), np.zeros(x.shape[-1])))
    return np.array(out)


def by_attention(share):
    return sorted(range(len(share)), key=lambda j: -share[j])


def attention_with_outliers(outliers, patches=36):
    """Evenly rising attention with peaks at the given patches."""
    attention = 1 + torch.arange(patches, dtype=torch.float64) / patches
    for rank, place in enumerate(outliers):
        attention[place] = 10 - rank
    return attention


def test_prumerge_keeps_the_outliers():
    outliers = [7, 30], [3, 20, 11]
    attention = torch.stack([attention_with_outliers(places) for places in outliers])
    projector, state = make("prumerge", (6, 6), neighbours=5)
    features = image((6, 6), attention=attention)
    expected = []
    for x, keys, share, kept in zip(
        features.patches.numpy(),
        features.keys.numpy(),
        attention.numpy(),
        ([7, 30], [3, 20, 11]),
        strict=True,
    ):
        expected.append(mlp(prumerge(x, keys, share / share.sum(), kept, 5), state))
    check(run(projector, features), expected, 1e-5)


def test_prumerge_at_a_budget_keeps_the_most_attended():
    projector, state = make("prumerge", budget=5, neighbours=3)
    features = image()
    expected = []
    for x, keys, share in zip(
        features.patches.numpy(), features.keys.numpy(), features.cls_attention.numpy(), strict=True
    ):
        expected.append(mlp(prumerge(x, keys, share / share.sum(), by_attention(share)[:4], 3), state))
    check(run(projector, features), expected, 1e-5)


def test_prumerge_plus_adds_evenly_spaced_patches():
    outliers = [7, 30, 18]
    attention = attention_with_outliers(outliers)[None]
    projector, state = make("prumerge_plus", (6, 6), neighbours=4)
    features = image((6, 6), batch=1, attention=attention)
    stride = int(int(1 / (3 / 36)) / 3)
    kept = outliers + [i for i in range(0, 35, stride) if i not in outliers]
    assert len(kept) > 3
    share = attention[0].numpy() / attention[0].numpy().sum()
    merged = prumerge(features.patches[0].numpy(), features.keys[0].numpy(), share, kept, 4)
    check(run(projector, features), [mlp(merged, state)], 1e-5)


def test_prumerge_plus_at_a_budget_is_half_attended_half_spaced():
    attention = attention_with_outliers([7, 30, 18])[None]
    projector, _ = make("prumerge_plus", (6, 6))
    kept = projector.select(attention[0], 7).tolist()
    assert kept[:3] == [7, 30, 18]
    assert len(set(kept)) == 6 and kept[3:] == sorted(kept[3:])
    gaps = np.diff([-1, *kept[3:], 36])
    assert gaps.min() >= 4 and max(gaps[1:-1]) <= 13


def test_visionzip():
    projector, state = make("visionzip", budget=7, contextual_share=3 / 7, head_width=4)
    features = image()
    expected = []
    for x, keys, share in zip(
        features.patches.numpy(), features.keys.numpy(), features.cls_attention.numpy(), strict=True
    ):
        dominant = sorted(by_attention(share)[:4])
        rest = [j for j in range(16) if j not in dominant]
        anchors = [rest[0], rest[4], rest[8]]
        metric = keys.reshape(16, 2, 4).mean(1)
        merged = {anchor: [] for anchor in anchors}
        for j in rest:
            if j not in anchors:
                merged[max(anchors, key=lambda a: cosine(metric[j], metric[a]))].append(x[j])  # noqa: B023
        contextual = [x[a] + (np.mean(merged[a], 0) if merged[a] else 0) for a in anchors]
        expected.append(mlp(np.array([x[j] for j in dominant] + contextual), state))
    check(run(projector, features), expected, 1e-5)


def dpc_knn(x, neighbours, threshold, fallback):
    """Labels by density-peak clustering, row by row."""
    n = len(x)
    distance = [[math.dist(a, b) / math.sqrt(x.shape[-1]) for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / neighbours) for row in distance]
    farthest = max(max(row) for row in distance)
    score = []
    for i in range(n):
        higher = [distance[i][j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(higher) if higher else farthest))
    centres = [i for i in range(n) if score[i] > threshold]
    if not centres:
        centres = sorted(sorted(range(n), key=lambda i: -score[i])[:fallback])
    labels = [min(range(len(centres)), key=lambda c: distance[centres[c]][i]) for i in range(n)]
    for rank, centre in enumerate(centres):
        labels[centre] = rank
    return np.array(labels)


def cluster_encoder(x, state, key, apart, heads=2):
    for index in range(2):
        y = norm(x, state, f"{key}.attention_norm")
        x = x + attend(y, y, y, state, f"{key}.layers.{index}", heads, apart)
    y = gelu(linear(norm(x, state, f"{key}.mlp_norm"), state, f"{key}.hidden"))
    return x + linear(y, state, f"{key}.output")


@pytest.mark.parametrize("threshold", [0.5, 1e6])
def test_setok(threshold):
    projector, state = make("setok", (6, 6), threshold=threshold)
    features = image((6, 6))
    # Three groups of patches, so that there is something to find.
    centres = 2 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    features = features.with_patches(0.3 * features.patches + centres[torch.arange(36) % 3])
    expected = []
    for patches in features.patches.numpy():
        x = patches + sincos((6, 6), WIDTH)
        labels = dpc_knn(x, 4, threshold, 4)
        encoded = cluster_encoder(x, state, "within", labels[:, None] != labels)
        means = np.array([encoded[labels == label].mean(0) for label in range(labels.max() + 1)])
        expected.append(linear(cluster_encoder(means, state, "between", None), state, "output"))
    assert threshold > 1 or all(len(tokens) != 4 for tokens in expected)
    check(run(projector, features), expected, 1e-4)


# Controls.


def test_random_keep_keeps_raster_order_and_every_patch_alike():
    projector, state = make("random_keep", budget=5)
    features = image()
    dense = mlp(features.patches.numpy(), state)
    generator = torch.Generator().manual_seed(0)
    seen = np.zeros(16)
    for _ in range(400):
        tokens = run(projector, features, generator=generator)
        places = [int(np.abs(dense[0] - token).sum(-1).argmin()) for token in tokens[0]]
        assert places == sorted(set(places)) and len(places) == 5
        check(tokens, dense[:, places])
        seen[places] += 1
    # 400 draws of 5 in 16: 125 each, standard deviation 9.3.
    assert seen.min() > 85 and seen.max() < 165


def test_downsample_takes_the_patch_at_the_centre_of_a_cell():
    projector, state = make("downsample", (6, 6), 4)
    places = [7, 10, 25, 28]
    check(run(projector, image((6, 6))), mlp(image((6, 6)).patches.numpy()[:, places], state))


def test_global_token_is_the_mean_patch():
    projector, state = make("global_token")
    check(run(projector, image()), mlp(image().patches.numpy().mean(1, keepdims=True), state))


def test_grid_regions_add_the_box():
    projector, state = make("grid_regions", (4, 6), 6)
    boxes = [[x / 3, y / 2, (x + 1) / 3, (y + 1) / 2] for y in range(2) for x in range(3)]
    expected = [
        mlp(adaptive_mean(x, (4, 6), (2, 3)), state) + mlp(np.array(boxes), state, "position")
        for x in image((4, 6)).patches.numpy()
    ]
    check(run(projector, image((4, 6))), expected, 1e-6)
