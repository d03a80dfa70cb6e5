"""Free decoding: a forced answer's mask where the words are the same, none where [SEG] is not said."""

import pytest
import torch
from tiny_ris import EXPRESSIONS, features, make_model
from torch import nn

from harness.config import ProtocolConfig
from harness.models.generation import generate_prompts
from harness.models.language import Template
from harness.prediction import predict_masks


class Scripted(nn.Module):
    """An output head that says the next word of a script, told by the number of words said so far."""

    def __init__(self, model, *scripts):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(len(model.template.tokenizer), 1))
        self.scripts, self.calls = scripts, 0

    def forward(self, states):
        words = torch.zeros(len(states), len(self.weight))
        for row in range(len(states)):
            script = self.scripts[row % len(self.scripts)]
            words[row, script[min(self.calls, len(script) - 1)]] = 1
        self.calls += 1
        return words


@pytest.fixture
def model(language_dir):
    return make_model(language_dir)


def speak(model, monkeypatch, *scripts, max_new_tokens=8):
    head = Scripted(model, *scripts)
    monkeypatch.setattr(model.language, "get_output_embeddings", lambda: head)
    image, _ = features(3)
    visual = model.visual_tokens(image)
    return *generate_prompts(model, visual, EXPRESSIONS, max_new_tokens), head.calls


@pytest.mark.parametrize("seg_state", ["at", "before"])
@pytest.mark.parametrize("answer", ["[SEG]", "the cup is [SEG]"])
def test_the_same_words_give_the_forced_answers_prompts(model, monkeypatch, answer, seg_state):
    protocol = ProtocolConfig(answer=answer, seg_state=seg_state)
    model.template = Template.parse(protocol, model.template.tokenizer)
    image, _ = features(3)
    packed = model.pack(model.visual_tokens(image), EXPRESSIONS)
    forced = model.seg_prompts(model.hidden(packed), packed)
    words = model.template.tokenizer.encode(answer, add_special_tokens=False)
    prompts, emitted, calls = speak(model, monkeypatch, words)
    assert emitted.all() and calls == len(words)
    torch.testing.assert_close(prompts, forced, atol=1e-5, rtol=1e-5)


def test_an_expression_without_seg_has_no_prompt(model, monkeypatch):
    tokenizer = model.template.tokenizer
    cup, end = tokenizer.convert_tokens_to_ids("cup"), tokenizer.eos_token_id
    prompts, emitted, calls = speak(model, monkeypatch, [cup, model.seg_id], [end], [cup])
    assert emitted.tolist() == [True, False, False] * 2
    assert (prompts[~emitted] == 0).all() and (prompts[emitted] != 0).any()
    assert calls == 8  # the third never stops by itself


def test_nothing_is_said_after_all_have_stopped(model, monkeypatch):
    end = model.template.tokenizer.eos_token_id
    _, emitted, calls = speak(model, monkeypatch, [end])
    assert not emitted.any() and calls == 1


SIZES = [(20, 40), (64, 32), (32, 32)]


def masks_of(model, decode):
    """Masks of all expressions, and whether ``[SEG]`` was said."""
    image, sam = features(3)
    protocol = ProtocolConfig(decode=decode, threshold=0.0)
    masks, _, emitted = predict_masks(model, image, sam, EXPRESSIONS, SIZES, protocol)
    return [mask for part in masks for mask in part], emitted


def test_generated_masks_are_the_forced_ones_and_empty_where_seg_is_not_said(model, monkeypatch):
    forced, emitted = masks_of(model, "forced")
    assert all(emitted) and all(0.2 < mask.mean() < 0.8 for mask in forced)
    scripts = [model.seg_id], [model.template.tokenizer.eos_token_id]
    head = Scripted(model, *scripts)
    monkeypatch.setattr(model.language, "get_output_embeddings", lambda: head)
    said, emitted = masks_of(model, "generate")
    assert emitted == [True, False] * 3
    sizes = [size for size, group in zip(SIZES, EXPRESSIONS, strict=True) for _ in group]
    for i, (mask, size) in enumerate(zip(said, sizes, strict=True)):
        assert mask.shape == size
        assert (mask == forced[i]).mean() > 0.99 if emitted[i] else not mask.any()


def test_the_state_before_seg_is_that_of_glamm_and_lisa(model):
    """Their mask of ids is shifted by one; the ids of a conversation say which state that is."""
    image, sam = features(1)
    expression = EXPRESSIONS[0][0]
    found = {}
    for seg_state in ("at", "before"):
        protocol = ProtocolConfig(answer="the cup is [SEG]", seg_state=seg_state)
        model.template = Template.parse(protocol, model.template.tokenizer)
        visual = model.visual_tokens(image)
        packed = model.pack(visual, [[expression]])
        hidden = model.hidden(packed)
        found[seg_state] = model.seg_prompts(hidden, packed)[:, 0]
        ids = [
            *model.template.before,
            *[-200] * int(visual.lengths[0]),
            *model.template.encode(expression)[0],
        ]
        seg = ids.index(model.seg_id)
        shifted = [token == model.seg_id for token in ids[1:]] + [False]  # as both repositories index
        assert shifted.index(True) == seg - 1
        column = seg if seg_state == "at" else shifted.index(True)
        torch.testing.assert_close(found[seg_state], model.seg_head(hidden[:, column]))
        forced = model(image, [[expression]], sam)
        torch.testing.assert_close(forced.logits, model.mask_logits(found[seg_state][:, None], sam))
    assert not torch.allclose(found["at"], found["before"])
