"""A projector that gives something else than it promised is told so where it is called, not scored."""

import pytest
import torch
from tiny_ris import EXPRESSIONS, features, make_model

from harness.config import ProtocolConfig
from harness.prediction import predict_masks
from harness.projector import Interface, LanguageHook, Projector, VisualTokens


class Given(Projector):
    """Gives what a test hands it."""

    name = "given"
    value = None

    def forward(self, image, *, budget=None, generator=None):
        return self.value


class Dropping(Given):
    """Drops inside the language model: there its budget is."""

    name = "dropping"

    def llm_hook(self):
        return LanguageHook()


def model_of(language_dir, kind, value, budget=None):
    model = make_model(language_dir)
    model.projector = kind(Interface(12, 32, (4, 4), budget)).eval()
    model.projector.value = value
    return model


def tokens(*lengths, width=32):
    return VisualTokens(torch.randn(sum(lengths), width), torch.tensor(lengths))


@pytest.mark.parametrize(
    ("value", "budget", "said"),
    [
        (torch.zeros(2, 4, 32), None, "must return VisualTokens, not Tensor"),
        (tokens(4, 4, width=12), None, r"must be \[tokens, 32\].*got \[8, 12\]"),
        (tokens(4), None, r"2 images must get a token each at least; got lengths \[4\]"),
        (tokens(4, 0), None, r"got lengths \[4, 0\]"),
        (tokens(9, 9), 36, r"36 visual tokens were asked for, \[9\] came"),
        (tokens(36, 35), 36, r"\[35, 36\] came"),
    ],
)
def test_what_was_not_promised_is_one_sentence(language_dir, value, budget, said):
    image, _ = features(2)
    with pytest.raises(ValueError, match=f"^given: .*{said}"):
        model_of(language_dir, Given, value, budget).visual_tokens(image)


def test_the_budget_of_a_call_goes_before_the_one_built_for(language_dir):
    image, _ = features(2)
    model = model_of(language_dir, Given, tokens(9, 9), 36)
    assert model.visual_tokens(image, budget=9).lengths.tolist() == [9, 9]
    with pytest.raises(ValueError, match="36 visual tokens"):
        model.visual_tokens(image, budget=36)


def test_who_drops_inside_the_language_model_gives_more(language_dir):
    image, _ = features(2)
    assert model_of(language_dir, Dropping, tokens(16, 16), 4).visual_tokens(image).lengths.sum() == 32


def test_tokens_that_are_no_numbers_are_refused_when_answering_and_left_to_the_loss_in_training(language_dir):
    image, _ = features(2)
    value = tokens(4, 4)
    value.embeddings[5, 3] = float("nan")
    model = model_of(language_dir, Given, value)
    with pytest.raises(ValueError, match="given: visual tokens are not finite"):
        model.visual_tokens(image)
    model.projector.train()
    assert model.visual_tokens(image) is value


def test_mask_logits_that_are_no_numbers_are_no_empty_masks(language_dir, monkeypatch):
    model = make_model(language_dir)
    image, sam = features(len(EXPRESSIONS))
    sizes = [(32, 32)] * len(EXPRESSIONS)
    predict_masks(model, image, sam, EXPRESSIONS, sizes, ProtocolConfig())
    decoded = model.mask_logits
    monkeypatch.setattr(model, "mask_logits", lambda *given: decoded(*given) * float("nan"))
    with pytest.raises(ValueError, match="mask logits are not finite"):
        predict_masks(model, image, sam, EXPRESSIONS, sizes, ProtocolConfig())


def test_dense_names_the_shape_that_it_takes():
    with pytest.raises(ValueError, match=r"dense takes \[b, k, H\], not \[2, 32\]"):
        VisualTokens.dense(torch.zeros(2, 32))
