import itertools
from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from svp_inputs import GRID, INTERFACE, H, join, rectangles, single, superpixels_of, take

from harness.plugins.discovery import find_projectors, load_projector
from harness.projector import ImageFeatures, Interface
from svp.pooling import pool
from svp.projector import SVP
from svp.slic_control import SlicSVP

VARIANTS = [
    {},
    {"sspe_reading": "occupancy"},
    {"ssa": "none"},
    {"ssa": "plain"},
    {"ssa": "query_sspe"},
    {"ssa": "patch_sspe"},
    {"sspe": "none", "ssa": "none"},
    {"sspe": "bbox_mlp"},
    {"sspe": "mask_mlp"},
    {"sspe": "sinusoidal"},
    {"pooling": "down", "background": True},
    {"order": "raster"},
    {"order": "random", "order_seed": 4},
]


def build(interface=INTERFACE, **options):
    """A projector whose SSPE says something: its outputs start at zero."""
    torch.manual_seed(0)
    projector = SVP(interface, SVP.Config(**({"ssa_heads": 4} | options))).eval()
    with torch.no_grad():
        if projector.sspe is not None:
            projector.sspe.to_language.weight.normal_(std=0.3)
            if projector.sspe.to_attention is not None:
                projector.sspe.to_attention.weight.normal_(std=0.3)
        if projector.background is not None:
            projector.background.normal_()
    return projector


def name_of(options):
    return "-".join(f"{k}.{v}" for k, v in options.items()) or "default"


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
@torch.no_grad()
def test_a_batch_equals_one_image_at_a_time(images, batch, options):
    projector = build(**options)
    together = projector(batch)
    assert together.embeddings.shape == (int(together.lengths.sum()), H)
    for image, tokens in zip(images, together.split(), strict=True):
        torch.testing.assert_close(tokens, projector(image).embeddings, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
@torch.no_grad()
def test_permuting_the_superpixels_permutes_the_tokens(options):
    image, permutation = single(7, 2), torch.tensor([3, 6, 0, 5, 1, 4, 2])
    projector = build(**(options | {"order": "stored"}))
    tokens = projector(image).embeddings
    shuffled = projector(replace(image, superpixels=take(image.superpixels, permutation))).embeddings
    torch.testing.assert_close(shuffled[:7], tokens[:7][permutation], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("order", ["area", "raster", "random"])
@torch.no_grad()
def test_a_named_order_does_not_hang_on_the_stored_one(order):
    image, permutation = single(7, 2), torch.tensor([3, 6, 0, 5, 1, 4, 2])
    projector = build(order=order)
    shuffled = replace(image, superpixels=take(image.superpixels, permutation))
    torch.testing.assert_close(
        projector(shuffled).embeddings, projector(image).embeddings, atol=1e-5, rtol=1e-5
    )


@torch.no_grad()
def test_padding_never_leaks(images):
    # beside an image of 40 superpixels the others are padded far; what it holds must not matter
    other = single(40, 9)
    wild = replace(other, patches=other.patches * 1e4)
    projector = build()
    first, second = (projector(join([*images, last])).split() for last in (other, wild))
    for one, same in zip(first[:-1], second[:-1], strict=True):
        assert torch.equal(one, same)


@torch.no_grad()
def test_pooling_alone_is_the_mlp_of_the_mean(batch):
    projector = build(sspe="none", ssa="none", order="stored")
    expected = projector.mlp(pool(batch.patches, batch.superpixels, "up"))
    torch.testing.assert_close(projector(batch).embeddings, expected)


@torch.no_grad()
def test_sspe_is_added_to_the_token():
    image = single(5, 3)
    projector = build(ssa="none", order="stored")
    shape = projector.sspe.to_language(projector.sspe(image.superpixels, GRID))
    without = projector.mlp(pool(image.patches, image.superpixels, "up"))
    torch.testing.assert_close(projector(image).embeddings, without + shape)


@torch.no_grad()
def test_each_sharing_of_sspe_with_the_attention_differs():
    image, outputs = single(5, 3), []
    reference = build()
    for ssa in ("plain", "query_sspe", "patch_sspe", "superpixel_sspe"):
        projector = build(ssa=ssa)
        own = projector.state_dict().keys()
        projector.load_state_dict({k: v for k, v in reference.state_dict().items() if k in own})
        outputs.append(projector(image).embeddings)
    for one, other in itertools.combinations(outputs, 2):
        assert (one - other).abs().max() > 1e-3


@torch.no_grad()
def test_uncovered_patches_carry_no_position():
    # shared SSPE moves the keys of covered patches only: a superpixel's own cells
    masks = torch.zeros(1, 48, 40, dtype=torch.bool)
    masks[0, :8, :8] = True  # cell 0
    patches = torch.zeros(1, 30, 16)
    image = ImageFeatures(patches, GRID, superpixels=superpixels_of(masks))
    maps = build().attention_maps(image)[0]
    assert (maps[:, 1:] - maps[:, 1:2]).abs().max() < 1e-6
    assert (maps[:, 0] - maps[:, 1]).abs().max() > 1e-3


@torch.no_grad()
def test_stage_one_knows_nothing_of_sspe(batch):
    projector, without = build(), build(sspe="none", ssa="plain")
    without.load_state_dict(projector.state_dict(), strict=False)
    projector.stage = 1
    torch.testing.assert_close(projector(batch).embeddings, without(batch).embeddings)
    projector.stage = 2
    assert (projector(batch).embeddings - without(batch).embeddings).abs().max() > 1e-2


@pytest.mark.parametrize("ssa", ["none", "query_sspe", "patch_sspe", "superpixel_sspe"])
@torch.no_grad()
def test_stage_two_starts_as_the_function_of_stage_one(batch, ssa):
    torch.manual_seed(0)
    projector = SVP(INTERFACE, SVP.Config(ssa_heads=4, ssa=ssa))
    projector.stage = 1
    before = projector(batch).embeddings
    projector.stage = 2
    assert torch.equal(projector(batch).embeddings, before)


@pytest.mark.parametrize("options", VARIANTS, ids=name_of)
@pytest.mark.parametrize("stage", [1, 2])
def test_what_is_trainable_is_what_gets_gradients(batch, options, stage):
    projector = build(**options)
    projector.stage = stage
    projector(batch).embeddings.square().sum().backward()
    reached = {n for n, p in projector.named_parameters() if p.grad is not None}
    prefixes = projector.trainable_in_stage(stage)
    named = {n for n, _ in projector.named_parameters() if any(n.startswith(p) for p in prefixes)}
    assert named == reached


def test_sspe_from_stage_one(batch):
    projector = build(sspe_from_stage=1)
    projector.stage = 1
    assert "sspe" in projector.trainable_in_stage(1)
    assert "sspe" not in build().trainable_in_stage(1) and "sspe" in build().trainable_in_stage(2)
    first = projector(batch).embeddings
    projector.stage = 2
    assert torch.equal(projector(batch).embeddings, first)


@torch.no_grad()
def test_background_is_one_more_token_where_something_is_uncovered():
    covered = ImageFeatures(
        torch.randn(1, 30, 16), GRID, superpixels=superpixels_of(torch.ones(1, 48, 40, dtype=torch.bool))
    )
    image = single(3, 1)
    projector = build(background=True)
    assert projector(join([image, covered])).lengths.tolist() == [4, 1]
    with_mark = projector(image).embeddings
    projector.background.zero_()
    changed = (projector(image).embeddings - with_mark).abs().amax(dim=1) > 1e-4
    assert changed.sum() == 1


@pytest.mark.parametrize("count", [1, 500])
@torch.no_grad()
def test_one_and_five_hundred_superpixels(count):
    tokens = build()(single(count, 0))
    assert tokens.lengths.tolist() == [count] and torch.isfinite(tokens.embeddings).all()


@pytest.mark.parametrize("reading", ["grid", "occupancy"])
def test_half_precision_stays_near(batch, reading):
    projector = build(sspe_reading=reading)
    full = projector(batch).embeddings
    projector.to(torch.bfloat16)
    half = ImageFeatures(batch.patches.bfloat16(), GRID, superpixels=batch.superpixels)
    tokens = projector(half).embeddings
    assert tokens.dtype == torch.bfloat16
    assert (tokens.float() - full).norm() < 0.05 * full.norm()
    moved = replace(half, superpixels=batch.superpixels.to("cpu", torch.bfloat16))
    assert torch.isfinite(projector(moved).embeddings).all()


@torch.no_grad()
def test_another_grid_than_built_for():
    image = ImageFeatures(
        torch.randn(1, 144, 16),
        (12, 12),
        superpixels=superpixels_of(rectangles(4, torch.Generator().manual_seed(0)), (12, 12)),
    )
    for sspe in ("cross_attention", "bbox_mlp", "mask_mlp", "sinusoidal"):
        assert build(sspe=sspe)(image).embeddings.shape == (4, H)


@torch.no_grad()
def test_attention_maps_are_distributions(batch):
    maps = build().attention_maps(batch)
    assert maps.shape == (14, 4, 30)
    torch.testing.assert_close(maps.sum(dim=2), torch.ones(14, 4))
    with pytest.raises(ValueError, match="ssa 'none'"):
        build(ssa="none").attention_maps(batch)


def test_what_it_cannot_do_is_said(batch):
    with pytest.raises(ValueError, match="no superpixels"):
        build()(replace(batch, superpixels=None))
    other = ImageFeatures(torch.randn(4, 36, 16), (6, 6), superpixels=batch.superpixels)
    with pytest.raises(ValueError, match="30 cells"):
        build()(other)
    assert SVP.skip(Interface(18, H, GRID), SVP.Config()) == (
        True,
        "ssa_heads 8 does not divide the vision width 18",
    )
    assert SVP.skip(INTERFACE, SVP.Config()) == (False, "")
    with pytest.raises(ValidationError, match="sspe_block"):
        SVP.Config(sspe_block=2)


def test_the_control_is_the_same_projector_on_slic():
    found = find_projectors()
    assert load_projector("svp") is SVP and load_projector("svp_slic") is SlicSVP
    assert found["svp"].superpixel_source is None and found["svp"].needs == ("superpixels",)
    assert (found["svp_slic"].kind, found["svp_slic"].superpixel_source) == ("control", "slic")
    assert SlicSVP.Config is SVP.Config
    torch.manual_seed(0)
    one = SVP(INTERFACE)
    torch.manual_seed(0)
    other = SlicSVP(INTERFACE)
    assert all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))
