"""Tokens while training: dropout hangs on the seed alone, and only some designs drop."""

import pytest
import torch
from projector_cases import GRID, LANGUAGE, LEVELS, WIDTH, encode, make_features
from shipped import shipped_projectors

from harness.plugins.discovery import get_projector, load_projector
from harness.projector import Interface
from harness.seeds import forked_rng

# Honeybee's resampler drops attention weights; BERT, Deformable DETR's decoder and SeTok's encoders drop too.
DROPS = {"honeybee_resampler", "q_former", "d_abstractor", "setok"}
TRAINED = [name for name, info in shipped_projectors().items() if info.acts_on == "training"]


@pytest.mark.parametrize("name", TRAINED)
def test_tokens_in_training_hang_on_the_seed_alone(name):
    with forked_rng("projector"):
        projector = load_projector(name)(Interface(WIDTH, LANGUAGE, GRID, None, LEVELS)).train()
    image = encode(name, make_features(needs=get_projector(name).needs))

    def tokens(seed):
        with torch.no_grad(), forked_rng("dropout", seed):
            found = projector(image)
        return found.embeddings, found.lengths

    torch.rand(1)
    (first, lengths), (other, _) = tokens(0), tokens(1)
    torch.rand(1)  # what else was drawn does not matter
    again, same = tokens(0)
    assert torch.equal(first, again) and torch.equal(lengths, same)
    assert torch.equal(first, other) == (name not in DROPS)
