"""Visual tokens dropped inside the language model, each expression its own."""

import pytest
import torch
from tiny_ris import EXPRESSIONS, Ragged, features, make_model
from torch import nn

from baselines.fastv import FastV, MostAttended
from harness.models.pruning import layer_mean
from harness.projector import Interface


class Dropping(Ragged):
    """Ragged tokens, of which two stay after the first layer."""

    name = "dropping_for_tests"
    hook: MostAttended | None = MostAttended(1, 2)

    def llm_hook(self):
        return self.hook


@pytest.fixture(params=[("causal", "sdpa"), ("bidirectional", "sdpa"), ("causal", "eager")], ids="-".join)
def model(language_dir, request):
    visual, attention = request.param
    made = make_model(language_dir, visual_attention=visual, attention=attention)
    with torch.no_grad():
        for name, parameter in made.language.named_parameters():
            if "proj" in name:
                parameter.mul_(6)  # attention that is not flat
        state = made.projector.state_dict()
        made.projector = Dropping(Interface(12, 32, (4, 4))).eval()
        made.projector.load_state_dict(state)
    return made


def by_masking(model, tokens, text, keep, after):
    """One conversation at full length, where later layers cannot look at what was dropped."""
    ids, question = model.template.encode(text)
    embed = model.language.get_input_embeddings()
    start = len(model.template.before)
    sequence = torch.cat([embed(torch.tensor(model.template.before)), tokens, embed(torch.tensor(ids))])[None]
    length, places = sequence.shape[1], range(start, start + len(tokens))
    sees = torch.ones(length, length, dtype=torch.bool).tril()
    if model.options.visual_attention == "bidirectional":
        for i in places:
            sees[i, list(places)] = True
    last = start + len(tokens) + question - 1

    decoder = model.language.get_decoder()
    decoder.config._attn_implementation = "eager"
    seen = {}

    def additive(mask):
        return torch.zeros(1, 1, length, length).masked_fill(~mask, -1e9)

    def choose(_, __, output):
        weights = output[1][0].mean(0)[last]
        order = sorted(places, key=lambda i: -weights[i].item())
        seen["dropped"] = sorted(order[keep:])

    def blind(_, args, kwargs):
        mask = sees.clone()
        mask[:, seen["dropped"]] = False
        mask |= torch.eye(length, dtype=torch.bool)  # a dropped token sees itself, and nobody sees it
        return args, {**kwargs, "attention_mask": additive(mask)}

    handles = [decoder.layers[after - 1].self_attn.register_forward_hook(choose)]
    handles += [layer.register_forward_pre_hook(blind, with_kwargs=True) for layer in decoder.layers[after:]]
    out = decoder(inputs_embeds=sequence, attention_mask=additive(sees), use_cache=False)
    for handle in handles:
        handle.remove()
    decoder.config._attn_implementation = model.options.attention
    seg = start + len(tokens) + ids.index(model.seg_id)
    return out.last_hidden_state[0, seg], seen["dropped"]


def test_dropping_equals_masking_one_conversation_at_a_time(model):
    image, _ = features(3)
    visual = model.visual_tokens(image)
    expected, dropped = [], []
    with torch.no_grad():
        for tokens, texts in zip(visual.split(), EXPRESSIONS, strict=True):
            for text in texts:
                state, gone = by_masking(model, tokens, text, 2, 1)
                expected.append(state)
                dropped.append(gone)
        packed = model.pack(visual, EXPRESSIONS)
        got = model.hidden(packed)[packed.seg_row, packed.seg_column]
    torch.testing.assert_close(got, torch.stack(expected), atol=2e-4, rtol=1e-3)
    # 3, 4 and 5 tokens; expressions of an image need not agree
    assert [len(gone) for gone in dropped] == [1, 1, 2, 3, 3, 3]
    assert len({tuple(gone) for gone in dropped[3:]} | {tuple(gone) for gone in dropped[:2]}) > 2


def test_dropping_changes_the_answer_and_keeping_all_does_not(model):
    image, sam = features(3)
    with torch.no_grad():
        pruned, *_ = model(image, EXPRESSIONS, sam)
        model.projector.hook = MostAttended(1, 100)
        all_kept, ce, *_ = model(image, EXPRESSIONS, sam)
        model.projector.hook = None
        plain, plain_ce, *_ = model(image, EXPRESSIONS, sam)
    torch.testing.assert_close(all_kept, plain, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(ce, plain_ce, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(pruned, plain, atol=1e-3)


def test_neighbours_and_batch_do_not_matter(model):
    image, _ = features(3)
    with torch.no_grad():
        visual = model.visual_tokens(image)
        packed = model.pack(visual, EXPRESSIONS)
        together = model.hidden(packed)[packed.seg_row, packed.seg_column]
        one = type(visual)(visual.split()[2], visual.lengths[2:])
        packed = model.pack(one, [EXPRESSIONS[2][2:]])
        alone = model.hidden(packed)[packed.seg_row, packed.seg_column]
    torch.testing.assert_close(alone[0], together[5], atol=1e-4, rtol=1e-4)


def with_lora(model):
    """What learns in stage 2, with LoRA away from its start at zero."""
    named = model.set_stage(2)
    for name, parameter in named:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return named


def test_gradients_reach_the_projector_and_the_language_model(model):
    image, sam = features(3)
    named = with_lora(model)
    logits, ce, *_ = model(image, EXPRESSIONS, sam)
    (logits.square().mean() + ce).backward()
    assert [n for n, p in named if p.grad is None or not p.grad.any()] == []


def test_gradient_checkpointing_changes_no_gradient(model):
    image, sam = features(3)
    named = with_lora(model)
    model.language.train()
    layers, found = model.language.get_decoder().layers, []
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for checkpointing in (False, True):
        if checkpointing:
            model.language.gradient_checkpointing_enable({"use_reentrant": False})
        model.zero_grad()
        logits, ce, *_ = model(image, EXPRESSIONS, sam)
        (logits.square().mean() + ce).backward()
        found.append({name: parameter.grad.clone() for name, parameter in named})
        assert all(layer.gradient_checkpointing == checkpointing for layer in layers)
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient, msg=name)


@pytest.mark.parametrize("layer", [2, 5])
def test_a_layer_that_leaves_none_behind_it_is_refused(model, layer):
    model.projector.hook = MostAttended(layer, 2)
    image, sam = features(3)
    with pytest.raises(ValueError, match=f"after layer {layer} of 2; `layer` must be 1 to 1"):
        model(image, EXPRESSIONS, sam)


def test_tokens_over_layers():
    assert layer_mean(MostAttended(2, 144), 576, 32) == (2 * 576 + 30 * 144) / 32
    assert layer_mean(None, 40, 32) == 40


def test_fastv_drops_when_used_and_in_training_only_where_asked():
    usual = FastV(Interface(8, 12, (12, 12)))
    asked = FastV(Interface(8, 12, (12, 12)), FastV.Config(in_training=True))
    assert usual.train().llm_hook() is None and asked.train().llm_hook() is not None
    hook = usual.eval().llm_hook()
    assert (hook.layer, hook.kept(144)) == (2, 36)
    attention = torch.zeros(144)
    attention[[100, 7, 50]] = torch.tensor([1.0, 2.0, 3.0])
    assert {7, 50, 100} <= set(hook.keep(attention).tolist())
