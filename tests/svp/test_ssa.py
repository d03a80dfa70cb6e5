import pytest
import torch

from svp.ssa import SuperpixelAttention, own_embedding

LENGTHS = torch.tensor([3, 1, 5])


def inputs(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        torch.randn(9, 16, generator=generator),
        torch.randn(3, 30, 16, generator=generator),
        torch.randn(9, 16, generator=generator),
        torch.randn(3, 30, 16, generator=generator),
    )


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return SuperpixelAttention(16, 4).eval()


def plain(module, coarse, patches, query_position, key_position):
    """One superpixel of one image: ``coarse`` ``[d]``, ``patches`` ``[n, d]``; returns token and maps."""
    told = module.norm_key(patches)
    q = module.query(module.norm_query(coarse) + query_position)
    k, v = module.key(told + key_position), module.value(told)
    mixed, maps = [], []
    for head in range(module.heads):
        part = slice(head * 4, head * 4 + 4)
        weights = torch.stack([q[part] @ k[j, part] / 2.0 for j in range(len(k))]).softmax(dim=0)
        mixed.append(sum(weights[j] * v[j, part] for j in range(len(k))))
        maps.append(weights)
    refined = coarse + module.out(torch.cat(mixed))
    return refined + module.mlp(module.norm_mlp(refined)), torch.stack(maps)


@torch.no_grad()
def test_against_plain_loops(attention):
    coarse, patches, query_position, key_position = inputs()
    out = attention(coarse, patches, LENGTHS, query_position, key_position)
    maps = attention.attention_maps(coarse, patches, LENGTHS, query_position, key_position)
    owner = [0, 0, 0, 1, 2, 2, 2, 2, 2]
    for row, image in enumerate(owner):
        token, weights = plain(
            attention, coarse[row], patches[image], query_position[row], key_position[image]
        )
        torch.testing.assert_close(out[row], token, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(maps[row], weights, atol=1e-6, rtol=1e-5)


@torch.no_grad()
def test_without_positions_they_count_as_zero(attention):
    coarse, patches, _, _ = inputs()
    zeros = torch.zeros(9, 16), torch.zeros(3, 30, 16)
    torch.testing.assert_close(
        attention(coarse, patches, LENGTHS), attention(coarse, patches, LENGTHS, *zeros)
    )


@torch.no_grad()
def test_positions_that_agree_draw_attention(attention):
    coarse, patches, _, _ = inputs()
    mark = 3 * torch.randn(16, generator=torch.Generator().manual_seed(9))
    attention.query.weight.copy_(torch.eye(16))
    attention.key.weight.copy_(torch.eye(16))
    key_position = torch.zeros(3, 30, 16)
    key_position[:, 7] = mark
    maps = attention.attention_maps(coarse, patches, LENGTHS, mark.expand(9, -1), key_position)
    without = attention.attention_maps(coarse, patches, LENGTHS)
    assert maps[..., 7].mean() > 5 * without[..., 7].mean()


def test_each_patch_takes_its_owners_embedding():
    embeddings = torch.arange(6.0).reshape(3, 2)
    owner = torch.tensor([[0, 2], [-1, 1]])
    assert own_embedding(embeddings, owner).tolist() == [[[0, 1], [4, 5]], [[0, 0], [2, 3]]]


def test_heads_must_divide_the_width():
    with pytest.raises(ValueError, match="ssa_heads 3 does not divide"):
        SuperpixelAttention(16, 3)
