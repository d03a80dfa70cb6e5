"""A projector that reads the expression: each expression gets the answer of a conversation of its own."""

import pytest
import torch
from expression_pool import ExpressionPool
from tiny_ris import EXPRESSIONS, features, make_model

from baselines.fastv import MostAttended
from harness.config import ProtocolConfig
from harness.models.captions import Captions, Slots
from harness.prediction import predict_masks
from harness.projector import ImageFeatures, Interface, Superpixels

ALONE = [(image, text) for image, group in enumerate(EXPRESSIONS) for text in group]
WORDS = [len(text.split()) for _, text in ALONE]


class Dropping(ExpressionPool):
    name = "dropping_expression_pool"

    def llm_hook(self):
        return MostAttended(1, 2)


@pytest.fixture(params=[ExpressionPool, Dropping])
def model(language_dir, request):
    made = make_model(language_dir)
    with torch.no_grad():
        for name, parameter in made.language.named_parameters():
            if "proj" in name:
                parameter.mul_(6)  # attention that is not flat
    torch.manual_seed(2)
    made.projector = request.param(Interface(12, 32, (4, 4))).eval()
    return made


def test_many_expressions_are_answered_as_each_alone(model):
    image, sam = features(3)
    with torch.no_grad():
        together = model(image, EXPRESSIONS, sam)
        for row, (number, text) in enumerate(ALONE):
            one = torch.tensor([number])
            alone = model(image.take(one), [[text]], sam[one])
            torch.testing.assert_close(together.logits[row], alone.logits[0], atol=1e-4, rtol=1e-4)
    assert together.visual.lengths.tolist() == [words + 2 for words in WORDS]
    assert not torch.allclose(together.logits[0], together.logits[1], atol=1e-3)


def test_the_tokens_hang_on_what_is_asked(model):
    image, _ = features(1)
    with torch.no_grad():
        kinds = [model.read(image, [[text]])[0].embeddings for text in ("red cup", "left star", "red cup")]
    assert torch.equal(kinds[0], kinds[2]) and not torch.allclose(kinds[0], kinds[1], atol=1e-3)


def test_captions_and_their_places_are_asked_one_by_one_in_their_order(model):
    image, sam = features(3)
    words = ["red", "cup", "left", "star", "blue", "right", "the", "a", "on"]
    ids = {word: model.template.tokenizer.encode(word, add_special_tokens=False)[0] for word in words}
    slots = Slots([(word,) for word in words], ids.__getitem__)
    said = slots.encode([(word,) for word in words])
    places = [["left"], [], ["red", "cup"]]
    asked = Captions(places, said, slots)
    with torch.no_grad():
        loss, _ = model.caption(image, EXPRESSIONS, asked)
        beside = model(image, EXPRESSIONS, sam, asked)
        alone, row = [], 0
        for number, group in enumerate(EXPRESSIONS):
            for text in [*group, *places[number]]:
                one = Captions([[]], said[row : row + 1], slots)
                alone.append(model.caption(image.take(torch.tensor([number])), [[text]], one)[0])
                row += 1
        plain = model(image, EXPRESSIONS, sam)
    # the loss counts by expression: nine captions, six of them of expressions
    assert loss.item() == pytest.approx(torch.stack(alone).mean().item() * 9 / 6, rel=1e-4)
    torch.testing.assert_close(beside.caption, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(beside.logits, plain.logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("decode", ["forced", "generate"])
def test_predictions_tell_the_tokens_of_each_expression(model, decode):
    image, sam = features(3)
    protocol = ProtocolConfig(decode=decode, max_new_tokens=3)
    masks, tokens, emitted = predict_masks(model, image, sam, EXPRESSIONS, [(20, 30)] * 3, protocol)
    assert tokens == [words + 2 for words in WORDS]
    assert [len(part) for part in masks] == [2, 1, 3] and len(emitted) == 6


def test_gradients_reach_the_projector_and_leave_the_words(model):
    image, sam = features(3)
    model.set_stage(1)
    out = model(image, EXPRESSIONS, sam)
    (out.logits.square().mean() + out.ce).backward()
    assert all(p.grad is not None and p.grad.any() for p in model.projector.parameters())
    model.zero_grad(set_to_none=True)
    model.read(image, EXPRESSIONS)[0].embeddings.sum().backward()  # the projector alone
    assert all(table.weight.grad is None for table in model._embedding_tables())


def test_images_are_taken_with_all_that_is_theirs():
    lengths = torch.tensor([2, 1, 3])
    rows = torch.arange(6.0)[:, None].expand(6, 4)
    pixels = Superpixels(
        rows, rows, rows, rows[:, 0], lengths, excess=torch.arange(3.0)[:, None].expand(3, 4)
    )
    each = torch.arange(3.0)
    image = ImageFeatures(
        each[:, None, None].expand(3, 4, 5),
        (2, 2),
        levels=(each[:, None, None].expand(3, 4, 5) + 10,),
        cls_attention=each[:, None].expand(3, 4) + 20,
        last_keys=each[:, None, None, None].expand(3, 2, 4, 5) + 30,
        superpixels=pixels,
    )
    taken = image.take(torch.tensor([2, 0, 2]))
    assert taken.patches[:, 0, 0].tolist() == [2, 0, 2]
    assert taken.levels[0][:, 0, 0].tolist() == [12, 10, 12]
    assert taken.cls_attention[:, 0].tolist() == [22, 20, 22]
    assert taken.last_keys[:, 0, 0, 0].tolist() == [32, 30, 32] and taken.keys is None
    assert taken.superpixels.lengths.tolist() == [3, 2, 3]
    assert taken.superpixels.areas.tolist() == [3, 4, 5, 0, 1, 3, 4, 5]
    assert taken.superpixels.occupancy[:, 0].tolist() == [3, 4, 5, 0, 1, 3, 4, 5]
    assert taken.superpixels.excess[:, 0].tolist() == [2, 0, 2]
