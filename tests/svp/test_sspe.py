import math

import pytest
import torch
from svp_inputs import GRID, rectangles, superpixels_of, take
from torch.nn import functional as F

from svp.sspe import BoxEncoder, CentroidEncoder, CrossAttentionEncoder, MaskEncoder, ShapeHead, sincos_2d


def encoder(reading="grid", **options):
    torch.manual_seed(0)
    options = {"blocks": 3, "queries": 4, "mlp_ratio": 2} | options
    return CrossAttentionEncoder(64, reading=reading, **options).eval()


def plain_encoder(module, occupancy, grid):
    """One superpixel, one head and one query at a time, from the docstring's formulas."""
    centres = [((x + 0.5) / grid[1], (y + 0.5) / grid[0]) for y in range(grid[0]) for x in range(grid[1])]
    position = module.norm(module.embed(sincos_2d(torch.tensor(centres), module.embed.in_features)))
    inside = [c for c in range(len(centres)) if occupancy[c] >= 0.5]
    if module.reading == "occupancy" or not inside:
        inside = [c for c in range(len(centres)) if occupancy[c] > 0]
    states = module.queries
    for block in module.blocks:
        size = states.shape[1] // block.heads
        normed = block.norm_self(states)
        q, k, v = block.self_qkv(normed).chunk(3, dim=1)
        mixed = []
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            mixed.append((q[:, part] @ k[:, part].T / math.sqrt(size)).softmax(dim=1) @ v[:, part])
        states = states + block.self_out(torch.cat(mixed, dim=1))
        asked = block.query(block.norm_cross(states))
        told_k, told_v = block.key_value(position).chunk(2, dim=1)
        seen = torch.zeros_like(states)
        for head in range(block.heads):
            part = slice(head * size, (head + 1) * size)
            for query in range(len(states)):
                scores = torch.stack([asked[query, part] @ told_k[c, part] / math.sqrt(size) for c in inside])
                values = told_v[inside][:, part]
                if module.reading == "occupancy":
                    share = occupancy[inside]
                    scores = scores + share.log()
                    values = values + share[:, None] * block.occupancy_value[part]
                seen[query, part] = scores.softmax(dim=0) @ values
        states = states + block.cross_out(seen)
        states = states + block.mlp(block.norm_mlp(states))
    return states.flatten()


@pytest.mark.parametrize("reading", ["grid", "occupancy"])
@torch.no_grad()
def test_batched_encoder_equals_plain_loops(batch, reading):
    module = encoder(reading)
    encoded = module(batch.superpixels, GRID)
    assert encoded.shape == (14, 4 * 64)
    for row, occupancy in enumerate(batch.superpixels.occupancy):
        torch.testing.assert_close(encoded[row], plain_encoder(module, occupancy, GRID), atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_grid_reading_sees_only_cells_inside_the_mask(batch):
    sp, module = batch.superpixels, encoder("grid")
    before = module(sp, GRID)
    inside = sp.occupancy[0] >= 0.5
    sp.occupancy[0, ~inside] *= 0.3  # less of cells that are not inside anyway
    torch.testing.assert_close(module(sp, GRID), before)
    sp.occupancy[0, inside.nonzero()[0]] = 0.2  # a cell leaves the mask
    after = module(sp, GRID)
    assert (after[0] - before[0]).abs().max() > 1e-3
    torch.testing.assert_close(after[1:], before[1:])


@torch.no_grad()
def test_occupancy_reading_tells_masks_apart_below_the_cell():
    masks = torch.zeros(2, 48, 40, dtype=torch.bool)
    masks[0, 8:24, 8:24] = masks[1, 8:22, 8:24] = True  # the same cells at least half covered
    sp = superpixels_of(masks)
    same, differ = (encoder(r)(sp, GRID) for r in ("grid", "occupancy"))
    torch.testing.assert_close(same[0], same[1])
    assert (differ[0] - differ[1]).abs().max() > 1e-3


@pytest.mark.parametrize("blocks", [1, 2])
@pytest.mark.parametrize("queries", [1, 6])
def test_size_follows_blocks_and_queries(batch, blocks, queries):
    module = encoder(blocks=blocks, queries=queries)
    assert module(batch.superpixels, GRID).shape == (14, queries * 64) == (14, module.output_width)
    assert len(module.blocks) == blocks


def test_every_parameter_learns(batch):
    for reading in ("grid", "occupancy"):
        module = encoder(reading)
        module(batch.superpixels, GRID).square().sum().backward()
        for name, parameter in module.named_parameters():
            assert parameter.grad is not None and parameter.grad.abs().sum() > 0, name


def test_sincos_against_its_formula():
    points = torch.tensor([[0.3, 0.8]])
    # four frequencies from half a cycle to 32 cycles over the image, x before y, sines before cosines
    frequencies = [math.pi * 64 ** (k / 3) for k in range(4)]
    angles = [c * f for c in (0.3, 0.8) for f in frequencies]
    expected = [math.sin(a) for a in angles] + [math.cos(a) for a in angles]
    assert sincos_2d(points, 16)[0].tolist() == pytest.approx(expected, abs=1e-4)


@torch.no_grad()
def test_box_encoder_reads_box_and_area(batch):
    sp, module = batch.superpixels, BoxEncoder(32)
    inputs = torch.cat([sp.boxes, sp.areas[:, None]], dim=1)
    expected = module.outer(F.gelu(module.inner(inputs)))
    torch.testing.assert_close(module(sp, GRID), expected)
    sp.occupancy.zero_()
    torch.testing.assert_close(module(sp, GRID), expected)


@torch.no_grad()
def test_mask_encoder_reads_the_mask_and_resamples_another_grid(batch):
    module = MaskEncoder(32, GRID)
    first = module(batch.superpixels, GRID)
    fine = batch.superpixels.occupancy.unflatten(1, GRID).repeat_interleave(2, 1).repeat_interleave(2, 2)
    doubled = take(batch.superpixels, slice(None))
    object.__setattr__(doubled, "occupancy", fine.flatten(1))
    torch.testing.assert_close(module(doubled, (12, 10)), first, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_mask_encoder_is_the_three_layers_of_osprey(batch):
    """``MLP(cells, width, width, 3)``: two hidden layers with ReLU between three linear maps."""
    module = MaskEncoder(32, GRID)
    assert sum(p.numel() for p in module.parameters()) == (30 * 32 + 32) + 2 * (32 * 32 + 32)
    (w1, b1), (w2, b2), (w3, b3) = ((m.weight, m.bias) for m in module.modules() if hasattr(m, "weight"))
    hidden = (batch.superpixels.occupancy @ w1.T + b1).clamp(min=0)
    expected = (hidden @ w2.T + b2).clamp(min=0) @ w3.T + b3
    torch.testing.assert_close(module(batch.superpixels, GRID), expected)


@torch.no_grad()
def test_centroid_encoder_knows_place_and_not_shape():
    masks = torch.zeros(3, 48, 40, dtype=torch.bool)
    masks[0, 8:40, 16:24] = masks[1, 16:32, 8:32] = masks[2, 0:8, 0:8] = True  # two share a centroid
    encoded = CentroidEncoder(32)(superpixels_of(masks), GRID)
    torch.testing.assert_close(encoded[0], encoded[1], atol=1e-4, rtol=0)
    assert (encoded[0] - encoded[2]).abs().max() > 0.5


def test_both_outputs_start_at_zero_and_both_learn(batch):
    head = ShapeHead(encoder(), 24, 16)
    shape = head(batch.superpixels, GRID)
    assert head.to_language(shape).abs().max() == 0 == head.to_attention(shape).abs().max()
    optimiser = torch.optim.SGD(head.parameters(), lr=0.1)
    for _ in range(2):
        optimiser.zero_grad()
        shape = head(batch.superpixels, GRID)
        loss = (head.to_language(shape) - 1).square().mean() + (head.to_attention(shape) + 1).square().mean()
        loss.backward()
        optimiser.step()
    missing = [n for n, p in head.named_parameters() if p.grad is None or p.grad.abs().sum() == 0]
    assert missing == []  # the encoder too, from the second step on


def probe(encode, train, test):
    """R^2 of a ridge regression from the encoding to centroid and area, on unseen superpixels."""

    def inputs_targets(sp):
        centre = (sp.boxes[:, :2] + sp.boxes[:, 2:]) / 2
        return encode(sp).detach(), torch.cat([centre, sp.areas[:, None]], dim=1)

    (x, y), (u, v) = inputs_targets(train), inputs_targets(test)
    mean, scale = x.mean(dim=0), x.std(dim=0) + 1e-6
    x, u = (x - mean) / scale, (u - mean) / scale
    solution = torch.linalg.solve(x.T @ x + 5 * torch.eye(x.shape[1]), x.T @ (y - y.mean(dim=0)))
    error = (u @ solution + y.mean(dim=0) - v).square().sum(dim=0)
    return 1 - error / (v - v.mean(dim=0)).square().sum(dim=0)


@pytest.mark.parametrize("reading", ["grid", "occupancy"])
def test_place_and_size_can_be_read_off_a_trained_encoder(reading):
    # the way it trains in the projector: through the zero-started output alone
    generator = torch.Generator().manual_seed(0)
    train, test = (superpixels_of(rectangles(n, generator), (12, 12)) for n in (600, 200))
    torch.manual_seed(0)
    head = ShapeHead(CrossAttentionEncoder(32, blocks=3, queries=4, mlp_ratio=2, reading=reading), 3, 16)
    optimiser = torch.optim.AdamW(head.parameters(), lr=2e-3)
    for _ in range(120):
        rows = torch.randint(0, 600, (64,), generator=generator)
        sp = take(train, rows, torch.tensor([64]))
        target = torch.cat([(sp.boxes[:, :2] + sp.boxes[:, 2:]) / 2, sp.areas[:, None]], dim=1)
        loss = ((head.to_language(head(sp, (12, 12))) - target) * torch.tensor([1.0, 1, 3])).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    accuracy = probe(lambda sp: head(sp, (12, 12)), train, test)
    assert (accuracy > torch.tensor([0.95, 0.95, 0.8])).all(), accuracy
    blind = probe(lambda sp: torch.randn(len(sp.areas), 128, generator=generator), train, test)
    assert (blind < 0.2).all()  # the probe itself cannot make it up
