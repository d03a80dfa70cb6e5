"""SSPE: a fixed-size embedding of a superpixel's shape and position (SVP, arXiv 2509.13676).

The paper is known here by its abstract and by summaries, not by its text. They tell of 3 blocks and 4
learnable queries a superpixel, whose cross-attention takes its keys and values from the superpixel's mask;
the rest is inferred. Two readings of "from the mask" are offered. In both the keys are
embeddings of the grid positions, which are the same for every superpixel, so they are projected once;
scores and their mixing, ``n`` a query, are what each superpixel adds.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from harness.precision import without_autocast
from harness.projector import Superpixels
from svp.pooling import binary_cells

__all__ = [
    "BoxEncoder",
    "CentroidEncoder",
    "CrossAttentionEncoder",
    "MaskEncoder",
    "ShapeEncoder",
    "ShapeHead",
    "sincos_2d",
]


def sincos_2d(points: Tensor, width: int, cycles: float = 32.0) -> Tensor:
    """Sine-cosine embedding of positions.

    Wavelengths run geometrically from twice the image (monotone over it) to ``1 / cycles`` of it.

    Args:
        points: ``[m, 2]`` x, y in 0..1.
        width: of the embedding, a multiple of 4.
        cycles: of the finest wave over the image.

    Returns:
        ``[m, width]`` float32: half precision cannot tell neighbouring cells' phases apart.
    """
    steps = torch.linspace(0, 1, width // 4, device=points.device, dtype=torch.float32)
    frequencies = math.pi * (2 * cycles) ** steps
    angles = (points.float()[:, :, None] * frequencies).flatten(1)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def cell_centres(grid: tuple[int, int], device: torch.device) -> Tensor:
    """``[n, 2]`` float32 x, y in 0..1 of the centres of the grid's cells, in raster order."""
    y, x = ((torch.arange(side, device=device) + 0.5) / side for side in grid)
    return torch.stack([x.repeat(grid[0]), y.repeat_interleave(grid[1])], dim=1)


class ShapeEncoder(nn.Module):
    """Base of the encoders: superpixels on a grid in, ``[S, output_width]`` out."""

    output_width: int


class _Block(nn.Module):
    """Self-attention among a superpixel's queries, masked cross-attention to the grid, MLP; pre-norm.

    Queries ``[1, Q, c]`` stand for the same queries of every superpixel: before the first block's
    cross-attention nothing tells superpixels apart, so that much is computed once.
    """

    def __init__(self, width: int, heads: int, ratio: int, with_value: bool):
        super().__init__()
        self.heads = heads
        self.norm_self, self.norm_cross, self.norm_mlp = (nn.LayerNorm(width) for _ in range(3))
        self.self_qkv, self.self_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.query, self.key_value = nn.Linear(width, width), nn.Linear(width, 2 * width)
        self.cross_out = nn.Linear(width, width)
        self.occupancy_value = nn.Parameter(torch.randn(width) * width**-0.5) if with_value else None
        self.mlp = nn.Sequential(nn.Linear(width, ratio * width), nn.GELU(), nn.Linear(ratio * width, width))

    def forward(self, queries: Tensor, position: Tensor, bias: Tensor, occupancy: Tensor) -> Tensor:
        """Queries ``[S or 1, Q, c]``, position ``[n, c]``, bias and occupancy ``[S, n]`` -> ``[S, Q, c]``."""
        queries = queries + self.self_out(self._confer(self.norm_self(queries)))
        queries = queries + self.cross_out(self._look(self.norm_cross(queries), position, bias, occupancy))
        return queries + self.mlp(self.norm_mlp(queries))

    def _confer(self, queries: Tensor) -> Tensor:
        q, k, v = self.self_qkv(queries).unflatten(2, (3, self.heads, -1)).unbind(2)
        # plain products: fused attention kernels are slow on sequences of four
        scores = torch.einsum("sqhc,skhc->shqk", q * q.shape[-1] ** -0.5, k)
        return torch.einsum("shqk,skhc->sqhc", scores.softmax(dim=-1), v).flatten(2)

    def _look(self, queries: Tensor, position: Tensor, bias: Tensor, occupancy: Tensor) -> Tensor:
        each, width = queries.shape[1:]
        k, v = self.key_value(position).unflatten(1, (2, self.heads, -1)).permute(1, 2, 0, 3)
        q = self.query(queries).flatten(0, 1).unflatten(1, (self.heads, -1)).transpose(0, 1)
        # one product for all superpixels: the keys are shared
        scores = (q * (width // self.heads) ** -0.5) @ k.transpose(1, 2)
        scores = scores.unflatten(1, (-1, each)) + bias[:, None]
        weights = scores.softmax(dim=-1, dtype=torch.float32).to(v.dtype)
        seen = (weights.flatten(1, 2) @ v).transpose(0, 1).flatten(1)
        if self.occupancy_value is not None:
            covered = (weights * occupancy[:, None]).sum(dim=-1)  # [heads, S, Q]
            value = self.occupancy_value.unflatten(0, (self.heads, -1))
            seen = seen + torch.einsum("hsq,hc->sqhc", covered, value).flatten(0, 1).flatten(1)
        return seen.unflatten(0, (-1, each))


class CrossAttentionEncoder(ShapeEncoder):
    """The paper's encoder: learnable queries that attend to the grid under the superpixel's mask.

    ``grid`` (reading A): keys and values are position embeddings of the cells inside the mask (at least
    half covered; the touched ones where the mask vanishes on the grid). ``occupancy`` (reading B): the
    share of a cell that the mask covers biases its key (``+ log share``) and adds to its value, so that
    the mask is read at finer than cell resolution.

    Args:
        width: of queries, keys and values.
        blocks: 3 in the paper.
        queries: 4 in the paper.
        mlp_ratio: width of the blocks' MLPs over ``width``.
        reading: ``grid`` or ``occupancy``.
    """

    def __init__(self, width: int, *, blocks: int, queries: int, mlp_ratio: int, reading: str):
        super().__init__()
        heads = max(h for h in range(1, max(1, width // 32) + 1) if width % h == 0)
        self.reading = reading
        self.queries = nn.Parameter(torch.randn(queries, width) * 0.5)
        self.embed = nn.Linear(4 * math.ceil(width / 4), width)
        self.norm = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            _Block(width, heads, mlp_ratio, reading == "occupancy") for _ in range(blocks)
        )
        self.output_width = queries * width

    def forward(self, superpixels: Superpixels, grid: tuple[int, int]) -> Tensor:
        """``[S, queries * width]`` for ``S`` superpixels on ``grid``."""
        occupancy = superpixels.occupancy.to(self.queries.dtype)
        waves = sincos_2d(cell_centres(grid, occupancy.device), self.embed.in_features)
        position = self.norm(self.embed(waves.to(occupancy.dtype)))
        share = binary_cells(occupancy).to(occupancy.dtype) if self.reading == "grid" else occupancy
        lowest = torch.finfo(occupancy.dtype).min
        bias = share.log().clamp(min=lowest)
        states = self.queries[None]
        for block in self.blocks:
            states = block(states, position, bias, occupancy)
        return states.flatten(1)


class BoxEncoder(ShapeEncoder):
    """BBox-MLP of the ablation: corners and area through a two-layer MLP."""

    def __init__(self, width: int):
        super().__init__()
        self.output_width = width
        self.inner, self.outer = nn.Linear(5, width), nn.Linear(width, width)

    def forward(self, superpixels: Superpixels, grid: tuple[int, int]) -> Tensor:
        """``[S, width]``."""
        inputs = torch.cat([superpixels.boxes, superpixels.areas[:, None]], dim=1)
        return self.outer(F.gelu(self.inner(inputs.to(self.inner.weight.dtype))))


class MaskEncoder(ShapeEncoder):
    """Mask-MLP: the flattened mask through a three-layer MLP, as the spatial token of Osprey is made.

    Osprey (arXiv 2312.10032, ``MaskExtractor``) reads the mask at 112 x 112 pixels; the stored share of each
    patch cell stands in for that here, which is coarser. Layers, widths and ReLU are Osprey's.
    """

    def __init__(self, width: int, grid: tuple[int, int]):
        super().__init__()
        self.output_width, self.grid = width, grid
        self.layers = nn.Sequential(
            nn.Linear(grid[0] * grid[1], width),
            nn.ReLU(),
            nn.Linear(width, width),
            nn.ReLU(),
            nn.Linear(width, width),
        )

    def forward(self, superpixels: Superpixels, grid: tuple[int, int]) -> Tensor:
        """``[S, width]``; occupancy on another grid than built for is resampled by area."""
        occupancy = superpixels.occupancy
        if tuple(grid) != tuple(self.grid):
            occupancy = F.adaptive_avg_pool2d(occupancy.unflatten(1, grid), self.grid).flatten(1)
        return self.layers(occupancy.to(next(self.parameters()).dtype))


class CentroidEncoder(ShapeEncoder):
    """Sinusoidal embedding of the centroid: position without shape."""

    def __init__(self, width: int):
        super().__init__()
        self.output_width = 4 * math.ceil(width / 4)

    def forward(self, superpixels: Superpixels, grid: tuple[int, int]) -> Tensor:
        """``[S, width]``, no parameters."""
        occupancy = superpixels.occupancy.float()
        with without_autocast(occupancy):
            centres = occupancy @ cell_centres(grid, occupancy.device) / occupancy.sum(dim=1, keepdim=True)
        return sincos_2d(centres, self.output_width)


class ShapeHead(nn.Module):
    """An encoder with its two outputs: to the language model's width and to the SSA.

    Both output projections start at zero: SSPE joins in stage 2, and a projector trained without it must
    start that stage as the function it was. The encoder gets gradients from the second step on.

    Args:
        encoder: one of the encoders above.
        language_width: ``H``.
        attention_width: ``d``; ``None`` where the SSA reads no SSPE.
    """

    def __init__(self, encoder: ShapeEncoder, language_width: int, attention_width: int | None):
        super().__init__()
        self.encoder = encoder
        self.norm = nn.LayerNorm(encoder.output_width)
        self.to_language = nn.Linear(encoder.output_width, language_width)
        self.to_attention = nn.Linear(encoder.output_width, attention_width) if attention_width else None
        for output in filter(None, (self.to_language, self.to_attention)):
            nn.init.zeros_(output.weight)
            nn.init.zeros_(output.bias)

    def forward(self, superpixels: Superpixels, grid: tuple[int, int]) -> Tensor:
        """``[S, encoder.output_width]``, shared by both outputs."""
        return self.norm(self.encoder(superpixels, grid).to(self.norm.weight.dtype))
