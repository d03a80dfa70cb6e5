import pytest
import torch
from svp_inputs import INTERFACE, single

from harness.plugins.controls import load_control
from harness.plugins.discovery import get_projector, load_projector
from svp.projector import SVP
from svp.reordered import Reordered


@torch.no_grad()
def test_the_same_tokens_in_another_order():
    torch.manual_seed(0)
    projector, image = SVP(INTERFACE, SVP.Config(ssa_heads=4)).eval(), single(7, 2)
    trained = projector(image)
    control = load_control("reordered", {"order": "random", "order_seed": 3})
    control.adjust(projector)
    tokens = projector(image)
    assert torch.equal(tokens.lengths, trained.lengths)
    assert not torch.equal(tokens.embeddings, trained.embeddings)
    place = (tokens.embeddings[:, None] - trained.embeddings[None]).abs().amax(dim=2)
    assert torch.allclose(place.amin(dim=1), torch.zeros(7), atol=1e-6)
    assert sorted(place.argmin(dim=1).tolist()) == list(range(7))


@torch.no_grad()
def test_five_orders_differ_and_each_equals_a_projector_built_with_it():
    image, seen = single(7, 2), []
    for order, seed in (("area", 0), ("raster", 0), ("random", 1), ("random", 2), ("random", 3)):
        torch.manual_seed(0)
        built = SVP(INTERFACE, SVP.Config(ssa_heads=4, order=order, order_seed=seed)).eval()
        torch.manual_seed(0)
        other = SVP(INTERFACE, SVP.Config(ssa_heads=4)).eval()
        Reordered(Reordered.Config(order=order, order_seed=seed)).adjust(other)
        assert torch.equal(built(image).embeddings, other(image).embeddings)
        seen.append(other(image).embeddings)
    assert not any(torch.equal(a, b) for i, a in enumerate(seen) for b in seen[:i])


def test_other_projectors_and_unknown_orders_are_refused():
    mlp = load_projector("mlp")(INTERFACE)
    with pytest.raises(ValueError, match="acts on an SVP, not on 'mlp'"):
        load_control("reordered", {}).adjust(mlp)
    with pytest.raises(ValueError, match="order"):
        load_control("reordered", {"order": "alphabet"})
    assert get_projector("reordered").options == {"order", "order_seed"}
