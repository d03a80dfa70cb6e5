"""An encoder with a hook between attention and MLP: plain loops, and what must not change anything."""

import math

import numpy as np
import pytest
import torch
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from baselines.tome import BipartiteMerging, bipartite_merge, merge_schedule
from harness.config import VisionConfig
from harness.models.vision import VisionEncoder
from harness.projector import EncoderHook

SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 24,
    "patch_size": 4,
}
PATCHES = 36


def encoder(kind="dinov2", layer=-1):
    torch.manual_seed(0)
    if kind == "dinov2":
        model = Dinov2Model(Dinov2Config(**SIZES, mlp_ratio=2, layerscale_value=0.7))
    elif kind == "clip":
        model = CLIPVisionModel(CLIPVisionConfig(**SIZES, intermediate_size=32))
    else:
        model = SiglipVisionModel(SiglipVisionConfig(**SIZES, intermediate_size=32))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(8)  # attention that is not flat
    return VisionEncoder(model, VisionConfig(kind=kind, image_size=24, patch_size=4, layer=layer))


def pixels(count=3):
    return torch.randn(count, 3, 24, 24, generator=torch.Generator().manual_seed(1))


def linear(x, module):
    return x @ module.weight.detach().double().numpy().T + module.bias.detach().double().numpy()


def norm(x, module):
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + module.eps)
    return scaled * module.weight.detach().double().numpy() + module.bias.detach().double().numpy()


def projection(layer, letter):
    names = {"q": ("query", "q_proj"), "k": ("key", "k_proj"), "v": ("value", "v_proj")}[letter]
    return next(m for n, m in layer.attention.named_modules() if n.split(".")[-1] in names)


def output_projection(layer):
    names = ("dense", "o_proj", "out_proj")
    return next(m for n, m in layer.attention.named_modules() if n.split(".")[-1] in names)


def merged_by_hand(model, image, counts):
    """Token by token: the tokens of one image, and the patches that each was merged from."""
    with torch.no_grad():
        x = model.embeddings(image[None])[0].double().numpy()
    members = [[]] + [[i] for i in range(len(x) - 1)]  # the class token has none
    for layer, count in zip(model.encoder.layer, counts, strict=True):
        y = norm(x, layer.norm1)
        q, k, v = (linear(y, projection(layer, part)).reshape(len(y), 2, 8) for part in "qkv")
        sizes = [max(1, len(m)) for m in members]
        heads = np.zeros((len(y), 2, 8))
        for i in range(len(y)):
            for head in range(2):
                # a merged token counts as often as it has patches
                weights = [s * math.exp(q[i, head] @ k[j, head] / math.sqrt(8)) for j, s in enumerate(sizes)]
                heads[i, head] = sum(w * v[j, head] for j, w in enumerate(weights)) / sum(weights)
        scale = layer.layer_scale1.lambda1.detach().double().numpy()
        x = x + scale * linear(heads.reshape(len(y), 16), output_projection(layer))

        keys = k.mean(1)
        first, second = list(range(2, len(x), 2)), list(range(1, len(x), 2))

        def likeness(i, j, keys=keys):
            return keys[i] @ keys[j] / math.sqrt((keys[i] @ keys[i]) * (keys[j] @ keys[j]))

        edges = sorted(((max((likeness(i, j), j) for j in second), i) for i in first), reverse=True)
        gone = {i: target for (_, target), i in edges[:count]}
        new, owners = [x[0]], [[]]
        for i in [*(i for i in first if i not in gone), *second]:
            group = [i] + [source for source, target in gone.items() if target == i]
            owners.append([patch for g in group for patch in members[g]])
            new.append(sum(len(members[g]) * x[g] for g in group) / len(owners[-1]))
        x, members = np.array(new), owners

        y = linear(norm(x, layer.norm2), layer.mlp.fc1)
        y = y * 0.5 * (1 + np.vectorize(math.erf)(y / math.sqrt(2)))
        x = x + layer.layer_scale2.lambda1.detach().double().numpy() * linear(y, layer.mlp.fc2)
    return norm(x, model.layernorm)[1:], members[1:]


def test_merging_in_the_encoder_against_plain_loops():
    vision = encoder()
    counts = merge_schedule(PATCHES, 7, 3)
    assert counts == [11, 11, 7]
    got = vision.encoder_tokens(pixels(), BipartiteMerging(PATCHES, 7, True)).double().numpy()
    for image, tokens in zip(pixels(), got, strict=True):
        expected, members = merged_by_hand(vision.model, image, counts)
        assert sorted(patch for group in members for patch in group) == list(range(PATCHES))
        assert len({len(group) for group in members}) > 1
        np.testing.assert_allclose(tokens, expected, atol=2e-4)


def test_proportional_attention_matters():
    vision = encoder()
    with_sizes, without = (vision.encoder_tokens(pixels(), BipartiteMerging(PATCHES, 9, p)) for p in (1, 0))
    assert not torch.allclose(with_sizes, without, atol=1e-3)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
@pytest.mark.parametrize("layer", [-1, -2, 2])
def test_a_hook_that_merges_nothing_changes_nothing(kind, layer):
    vision = encoder(kind, layer)
    tokens = vision.encoder_tokens(pixels(), BipartiteMerging(PATCHES, PATCHES, True))
    torch.testing.assert_close(tokens, vision(pixels()).patches, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", ["dinov2", "clip", "siglip"])
@pytest.mark.parametrize(("layer", "blocks"), [(-1, 3), (-2, 2), (1, 1)])
def test_a_hook_runs_up_to_the_selected_layer_and_leaves_the_encoder_as_it_was(kind, layer, blocks):
    class Recorder(EncoderHook):
        def __init__(self):
            self.seen = []

        def between(self, tokens, keys, sizes, *, block, blocks):
            self.seen.append((block, blocks, tuple(tokens.shape), tuple(keys.shape)))
            return tokens[:, :-1], sizes[:, :-1]

    vision, hook = encoder(kind, layer), Recorder()
    before = vision(pixels()).patches
    tokens = vision.encoder_tokens(pixels(), hook)
    assert tokens.shape == (3, PATCHES - blocks, 16)
    assert hook.seen == [(i, blocks, (3, PATCHES - i, 16), (3, 2, PATCHES - i, 8)) for i in range(blocks)]
    assert torch.equal(vision(pixels()).patches, before)


def test_an_image_alone_is_merged_as_in_a_batch():
    vision, hook = encoder(), BipartiteMerging(PATCHES, 10, True)
    together = vision.encoder_tokens(pixels(), hook)
    for i in range(3):
        alone = vision.encoder_tokens(pixels()[i : i + 1], hook)
        torch.testing.assert_close(alone[0], together[i], atol=1e-4, rtol=1e-4)


def test_merging_keeps_the_weighted_sum_and_the_count():
    generator = torch.Generator().manual_seed(0)
    tokens, keys = torch.randn(2, 11, 4, generator=generator), torch.randn(2, 11, 3, generator=generator)
    sizes = torch.randint(1, 5, (2, 11), generator=generator).float()
    merged, new = bipartite_merge(tokens, keys, sizes, 5)
    assert merged.shape == (2, 6, 4) and torch.equal(new.sum(1), sizes.sum(1))
    before, after = (tokens * sizes[..., None]).sum(1), (merged * new[..., None]).sum(1)
    torch.testing.assert_close(before, after)


@pytest.mark.parametrize(
    ("patches", "budget", "blocks", "counts"),
    [
        (144, 36, 4, [27, 27, 27, 27]),
        (144, 9, 4, [72, 36, 18, 9]),
        (576, 576, 2, [0, 0]),
        (10, 4, 4, [2, 2, 2, 0]),
    ],
)
def test_the_schedule_is_even_and_never_more_than_half(patches, budget, blocks, counts):
    assert merge_schedule(patches, budget, blocks) == counts


@pytest.mark.parametrize("budget", [144, 64, 36])
def test_published_sizes_are_reached_in_24_blocks(budget):
    counts, left = merge_schedule(576, budget, 24), 576
    for count in counts:
        assert 0 <= count <= left // 2
        left -= count
    assert left == budget


def test_too_few_blocks_are_refused():
    with pytest.raises(ValueError, match="144 patches into 8 tokens in 4 blocks"):
        merge_schedule(144, 8, 4)


def test_blocks_of_another_build_are_refused():
    vision = encoder()
    vision.model.encoder.layer = torch.nn.ModuleList([torch.nn.Identity()])
    with pytest.raises(ValueError, match="Identity"):
        vision.encoder_tokens(pixels(), BipartiteMerging(PATCHES, 18, True))
    assert "forward" not in vars(vision.model.encoder.layer[0])
