"""What every projector promises, checked for each one that discovery finds.

``pytest tests/projectors/test_contract.py --projector path/to/file.py`` checks a single one.
"""

from __future__ import annotations

import copy
import random
import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from projector_cases import (
    ATTENTION,
    GRID,
    LANGUAGE,
    LEVELS,
    WIDTH,
    encode,
    in_dtype,
    make_features,
    one_image,
)
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from harness.plugins.discovery import find_projectors, get_projector, load_projector
from harness.projector import Interface, Projector

NEEDS = {"levels", *ATTENTION, "superpixels", "encoder_tokens", "expression"}
PUBLISHED_GRID = (24, 24)
ODD_GRIDS = [(12, 12), (8, 12), (12, 6), (7, 7), (5, 7), (1, 6), (1, 1)]


def pytest_generate_tests(metafunc):
    if "name" in metafunc.fixturenames:
        names = metafunc.config.getoption("--projector", default=[]) or [
            name for name in find_projectors() if issubclass(load_projector(name), Projector)
        ]
        metafunc.parametrize("name", names)


def interface(grid=GRID, budget=None, width=WIDTH, language=LANGUAGE) -> Interface:
    return Interface(width, language, grid, budget, LEVELS)


def build(name, seed=0, **options) -> Projector:
    """A projector in eval mode whose parameters are drawn from ``seed``, its own initialisation apart."""
    projector = load_projector(name)(interface(**options)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in projector.parameters():
            parameter.add_(0.02 * torch.randn(parameter.shape, generator=generator))
    return projector


def features(name, budget=None, **options):
    return encode(name, make_features(needs=get_projector(name).needs, **options), budget)


def measured(projector, tokens) -> list[int]:
    """Tokens an image at the end of the language model: fewer than at its input under a hook."""
    hook, lengths = projector.llm_hook(), tokens.lengths.tolist()
    return lengths if hook is None else [len(hook.keep(torch.arange(count) / count)) for count in lengths]


def built_or_reason(name, **options) -> Projector | str:
    """The projector, or the reason why it is skipped; the two ways of refusing must agree."""
    projector, asked = load_projector(name), interface(**options)
    skipped, reason = projector.skip(asked, projector.Config())
    if not skipped:
        return build(name, **options)
    with pytest.raises(ValueError, match=re.escape(reason)):
        projector(asked)
    assert len(reason.split()) >= 4, "a reason is a sentence"
    return reason


def test_declares_itself(name):
    projector, info = load_projector(name), get_projector(name)
    assert projector.name == info.declared["name"]
    for read in ("kind", "needs", "superpixel_source", "starts_from"):  # without importing the class
        assert getattr(info, read) == getattr(projector, read), read
    assert projector.kind in ("projector", "control")
    assert projector.reference and projector.licence
    assert all(isinstance(budget, int) and budget > 0 for budget in projector.budgets)
    assert set(projector.needs) <= NEEDS
    assert projector.__doc__ != Projector.__doc__
    assert bool(projector.starts_from) is (projector.start_from is not Projector.start_from)
    with pytest.raises(ValidationError):
        projector.Config(no_such_option=1)


def test_tokens_have_the_languages_width_and_the_declared_lengths(name):
    image = features(name)
    tokens = build(name)(image)
    assert tokens.embeddings.shape == (int(tokens.lengths.sum()), LANGUAGE)
    assert tokens.embeddings.dtype == torch.float32
    assert tokens.lengths.dtype == torch.int64 and tokens.lengths.shape == (3,)
    assert (tokens.lengths >= 1).all()
    assert tokens.embeddings.isfinite().all()


def test_tokens_depend_on_the_image(name):
    projector = build(name)
    one, other = (projector(features(name, seed=seed)).embeddings for seed in (0, 1))
    assert one.shape != other.shape or not torch.allclose(one, other)


def test_tokens_depend_on_the_expression_where_it_is_read(name):
    image = features(name)
    if image.expressions is None:
        return
    said, projector = image.expressions, build(name)
    other = replace(image, expressions=replace(said, embeddings=said.embeddings.flip(1)))
    with torch.no_grad():
        one, two = (projector(i).embeddings for i in (image, other))
    assert one.shape != two.shape or not torch.allclose(one, two)


def test_every_parameter_learns(name):
    projector = build(name)
    tokens = projector(features(name))
    weights = torch.randn(tokens.embeddings.shape, generator=torch.Generator().manual_seed(2))
    extra = 0 if tokens.extra_loss is None else tokens.extra_loss
    ((tokens.embeddings * weights).sum() + extra).backward()
    dead = [
        key
        for key, parameter in projector.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    assert not dead


def test_an_image_alone_gets_the_same_tokens_as_in_a_batch(name):
    projector, image = build(name), features(name)
    with torch.no_grad():
        together = projector(image).split()
        for index, tokens in enumerate(together):
            alone = projector(one_image(image, index)).embeddings
            torch.testing.assert_close(alone, tokens, atol=1e-5, rtol=1e-5)


def test_other_images_do_not_matter(name):
    projector, image = build(name), features(name)
    patches = image.patches.clone()
    patches[1:] = patches[1:].flip(2)  # no scaling and shift: a LayerNorm would undo them
    changed = replace(image, patches=patches, levels=tuple(level.clone() for level in image.levels))
    for attention in (changed.cls_attention, changed.last_cls_attention):
        if attention is not None:
            attention[1:] = attention[1:].flip(1)
    with torch.no_grad():
        before, after = (projector(i).split() for i in (features(name), encode(name, changed)))
    torch.testing.assert_close(before[0], after[0], atol=1e-5, rtol=1e-5)
    assert before[1].shape != after[1].shape or not torch.allclose(before[1], after[1])


def test_repeats_itself(name):
    projector, image = build(name), features(name)
    with torch.no_grad():
        for seed in (None, 3):
            generators = [seed if seed is None else torch.Generator().manual_seed(seed) for _ in range(2)]
            first, second = (projector(image, generator=generator).embeddings for generator in generators)
            assert torch.equal(first, second)


def test_keeps_no_state_and_leaves_global_randomness_alone(name):
    projector, image = build(name), features(name)
    state = copy.deepcopy(dict(projector.named_parameters()) | dict(projector.named_buffers()))
    attributes = set(vars(projector))
    with torch.no_grad():
        first = projector(image).embeddings
        seeds = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
        projector(features(name, seed=5), generator=torch.Generator().manual_seed(4))
        projector.training_budgets(0, torch.Generator().manual_seed(4))
        assert torch.equal(seeds[0], torch.get_rng_state())
        assert np.array_equal(seeds[1], np.random.get_state()[1])
        assert seeds[2] == random.getstate()
        assert torch.equal(first, projector(image).embeddings)
    assert set(vars(projector)) == attributes
    for key, value in (dict(projector.named_parameters()) | dict(projector.named_buffers())).items():
        assert torch.equal(value, state[key]), key


def test_saves_and_loads(name, tmp_path):
    projector, image = build(name, seed=0), features(name)
    save_file(projector.state_dict(), tmp_path / "projector.safetensors")
    other = build(name, seed=9)
    other.load_state_dict(load_file(tmp_path / "projector.safetensors"))
    with torch.no_grad():
        assert torch.equal(projector(image).embeddings, other(image).embeddings)


def test_published_budgets_are_given_exactly(name):
    for budget in load_projector(name).budgets:
        image = features(name, budget, grid=PUBLISHED_GRID, width=16, counts=(2,))
        projector = build(name, grid=PUBLISHED_GRID, budget=budget, width=16)
        with torch.no_grad():
            assert measured(projector, projector(image)) == [budget]


@pytest.mark.parametrize("budget", [-1, 0, 1, 2, 9, 16, 17, 36, 144, 145, 10**6])
def test_a_budget_is_honoured_exactly_or_refused_with_a_reason(name, budget):
    projector = built_or_reason(name, budget=budget)
    if isinstance(projector, str):
        assert str(budget) in projector
        return
    with torch.no_grad():
        assert measured(projector, projector(features(name, budget))) == [budget] * 3


@pytest.mark.parametrize("budget", [1, 9, 16, 36, 144])
def test_a_budget_at_call_time_is_honoured_exactly_or_refused(name, budget):
    projector = build(name)
    try:
        with torch.no_grad():
            lengths = measured(projector, projector(features(name), budget=budget))
    except ValueError as error:
        assert str(budget) in str(error)
    else:
        assert lengths == [budget] * 3


def test_training_budgets_can_be_given(name):
    projector = build(name)
    for stage in (1, 2):
        projector.stage = stage
        drawn = [projector.training_budgets(step, torch.Generator().manual_seed(7)) for step in (0, 0)]
        assert drawn[0] == drawn[1] and drawn[0]
        for budget in drawn[0]:
            with torch.no_grad():
                lengths = measured(projector, projector(features(name), budget=budget))
            assert budget is None or lengths == [budget] * 3


@pytest.mark.parametrize("grid", ODD_GRIDS, ids=str)
def test_any_grid_is_served_or_refused_with_a_reason(name, grid):
    projector = built_or_reason(name, grid=grid)
    if isinstance(projector, str):
        return
    with torch.no_grad():
        tokens = projector(features(name, grid=grid))
    assert (tokens.lengths >= 1).all() and tokens.embeddings.isfinite().all()


def test_another_grid_than_built_for_is_served_or_refused(name):
    try:
        with torch.no_grad():
            tokens = build(name)(features(name, grid=(6, 10)))
    except ValueError as error:
        assert "10" in str(error)
    else:
        assert (tokens.lengths >= 1).all() and tokens.embeddings.isfinite().all()


def test_half_precision_stays_close(name):
    projector, image = build(name).to(torch.bfloat16), in_dtype(features(name), torch.bfloat16)
    # The same rounded weights and features in single precision, so that only arithmetic differs.
    reference = copy.deepcopy(projector).float()
    with torch.no_grad():
        low, high = projector(image), reference(in_dtype(image, torch.float32))
    assert low.embeddings.dtype == torch.bfloat16
    assert torch.equal(low.lengths, high.lengths)
    error = (low.embeddings.float() - high.embeddings).norm() / high.embeddings.norm()
    assert error < 0.03


def test_overfits_eight_images(name):
    """Told apart by their tokens alone: the mean token reaches a random target for each image."""
    projector = build(name, grid=(6, 6))
    image = features(name, grid=(6, 6), counts=(3, 1, 2, 4, 2, 6, 5, 3))
    generator = torch.Generator().manual_seed(3)
    image = image.with_patches(image.patches + 2 * torch.randn(8, 1, WIDTH, generator=generator))
    image = encode(name, image)
    targets = torch.randn(8, LANGUAGE, generator=generator)
    optimiser = torch.optim.Adam(projector.parameters(), lr=5e-3)
    losses = []
    for _ in range(40):
        tokens = projector(image)
        means = torch.stack([part.mean(0) for part in tokens.split()])
        loss = (means - targets).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.25 * losses[0]
