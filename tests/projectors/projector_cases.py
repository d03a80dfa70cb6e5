"""Random image features with everything a projector may need, from a fixed generator."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import torch
from torch import nn
from transformers import Dinov2Config
from transformers.models.dinov2.modeling_dinov2 import Dinov2Layer

from harness.models.encoder_hooks import hooked_blocks
from harness.plugins.discovery import load_projector
from harness.projector import Expressions, ImageFeatures, Superpixels

WIDTH, LANGUAGE, GRID, LEVELS = 32, 24, (12, 12), 4
HEADS = 2
ATTENTION = ("cls_attention", "keys", "last_cls_attention", "last_keys")


def make_superpixels(count_by_image: list[int], patches: int, generator: torch.Generator) -> Superpixels:
    total = sum(count_by_image)
    occupancy = torch.rand(total, patches, generator=generator)
    occupancy = occupancy * (torch.rand(total, patches, generator=generator) < 0.2)
    # No mask is empty: each has one patch at least.
    owned = torch.randint(patches, (total, 1), generator=generator)
    occupancy = occupancy.scatter(1, owned, 1.0)
    corners = torch.rand(total, 2, 2, generator=generator).sort(1).values
    return Superpixels(
        occupancy=occupancy,
        weights=occupancy / occupancy.sum(1, keepdim=True),
        boxes=corners.flatten(1),
        areas=occupancy.mean(1),
        lengths=torch.tensor(count_by_image),
    )


def make_features(
    grid=GRID, width=WIDTH, counts=(1, 40, 5), seed=0, levels=LEVELS, needs=None
) -> ImageFeatures:
    """A batch of ``len(counts)`` images, image ``i`` with ``counts[i]`` superpixels.

    ``needs`` keeps only what a projector declares, so that reading anything else fails.
    """
    generator = torch.Generator().manual_seed(seed)
    b, n = len(counts), grid[0] * grid[1]

    def noise(*shape):
        return torch.randn(*shape, generator=generator)

    image = ImageFeatures(
        patches=noise(b, n, width),
        grid=grid,
        levels=tuple(noise(b, n, width) for _ in range(levels)),
        # Heavy-tailed, as a class token's attention is: a few outliers in each image.
        cls_attention=(2 * noise(b, n)).softmax(-1) * 4,
        keys=noise(b, HEADS, n, width // HEADS),
        superpixels=make_superpixels(list(counts), n, generator),
        # The class token keeps a tenth for itself.
        last_cls_attention=(2 * noise(b, n)).softmax(-1) * 0.9,
        last_keys=noise(b, HEADS, n, width // HEADS),
    )
    words = torch.tensor([1 + i % 3 for i in range(b)])
    image = replace(image, expressions=Expressions(noise(int(words.sum()), LANGUAGE), words))
    if needs is None:
        return image
    absent = {*ATTENTION, "superpixels"} - set(needs)
    image = replace(image, **dict.fromkeys(absent))
    if "expression" not in needs:
        image = replace(image, expressions=None)
    return image if "levels" in needs else replace(image, levels=())


@cache
def encoder_blocks(width: int, count: int = 10) -> nn.ModuleList:
    """Small random blocks of a vision encoder; enough of them to merge a grid into one token."""
    config = Dinov2Config(hidden_size=width, num_attention_heads=2, mlp_ratio=1, num_hidden_layers=count)
    config._attn_implementation = "sdpa"
    layers = nn.ModuleList(Dinov2Layer(config) for _ in range(count)).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(0)
    for parameter in layers.parameters():
        parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return layers


def encode(name: str, image: ImageFeatures, budget: int | None = None) -> ImageFeatures:
    """The image as a projector with an encoder hook gets it: its patches through hooked blocks."""
    projector = load_projector(name)
    if "encoder_tokens" not in projector.needs:
        return image
    hook = projector.encoder_hook(image.grid, budget, projector.Config())
    layers, hidden = encoder_blocks(image.patches.shape[-1]), image.patches
    with torch.no_grad(), hooked_blocks(layers, hook, patches=hidden.shape[1], heads=2, blocks=len(layers)):
        for layer in layers:
            hidden = layer(hidden)
    return replace(image, encoder_tokens=hidden)


def further_tensors(image: ImageFeatures) -> dict[str, torch.Tensor]:
    """What the image carries beside patches, levels and superpixels, by name."""
    values = {item: getattr(image, item) for item in (*ATTENTION, "encoder_tokens")}
    return {item: value for item, value in values.items() if value is not None}


def one_image(image: ImageFeatures, index: int) -> ImageFeatures:
    """The batch that holds image ``index`` alone."""
    superpixels, expressions = image.superpixels, image.expressions
    if superpixels is not None:
        rows = superpixels.image_index == index
        superpixels = Superpixels(
            superpixels.occupancy[rows],
            superpixels.weights[rows],
            superpixels.boxes[rows],
            superpixels.areas[rows],
            superpixels.lengths[index : index + 1],
        )
    pick = slice(index, index + 1)
    if expressions is not None:
        expressions = Expressions(expressions.split()[index], expressions.lengths[pick])
    return replace(
        image,
        patches=image.patches[pick],
        levels=tuple(level[pick] for level in image.levels),
        superpixels=superpixels,
        expressions=expressions,
        **{item: value[pick] for item, value in further_tensors(image).items()},
    )


def in_dtype(image: ImageFeatures, dtype: torch.dtype) -> ImageFeatures:
    """The same features in ``dtype``."""
    said = image.expressions
    return replace(
        image,
        patches=image.patches.to(dtype),
        levels=tuple(level.to(dtype) for level in image.levels),
        superpixels=None if image.superpixels is None else image.superpixels.to("cpu", dtype),
        expressions=None if said is None else replace(said, embeddings=said.embeddings.to(dtype)),
        **{item: value.to(dtype) for item, value in further_tensors(image).items()},
    )
