"""The assembled model: packing, batched mask decoding, stages, losses."""

import math

import numpy as np
import pytest
import torch
from tiny_ris import EXPRESSIONS, features, make_model
from torch import nn

from harness.config import ProtocolConfig, TrainingConfig
from harness.models.language import SEG, Template, load_tokenizer
from harness.models.losses import bce_loss, dice_loss, weighted_losses
from harness.models.sam import (
    TinySamSize,
    build_tiny_sam,
    decode_masks,
    load_sam,
    save_tiny_sam,
    upscale_logits,
)
from harness.projector import ImageFeatures, VisualTokens


@pytest.fixture
def model(language_dir):
    return make_model(language_dir)


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_packed_expressions_equal_conversations_of_their_own(language_dir, attention):
    """Reference: each conversation alone through the causal model, no custom mask or positions."""
    model = make_model(language_dir, attention=attention)
    image, sam = features(3)
    with torch.no_grad():
        logits, ce, visual, _ = model(image, EXPRESSIONS, sam)
        single, losses, answers = [], [], 0
        for i, tokens in enumerate(visual.split()):
            for text in EXPRESSIONS[i]:
                ids, question = model.template.encode(text)
                embed = model.language.get_input_embeddings()
                before = embed(torch.tensor(model.template.before))
                sequence = torch.cat([before, tokens, embed(torch.tensor(ids))])[None]
                out = model.language(inputs_embeds=sequence, output_hidden_states=True)
                start = len(before) + len(tokens)
                seg = start + ids.index(model.seg_id)
                prompt = model.seg_head(out.hidden_states[-1][:, seg])[:, None]
                single.append(model.mask_logits(prompt, sam[i : i + 1]))
                predicted = out.logits[0, start + question - 1 : start + len(ids) - 1]
                losses.append(
                    nn.functional.cross_entropy(predicted, torch.tensor(ids[question:]), reduction="sum")
                )
                answers += len(ids) - question
    assert torch.allclose(logits, torch.cat(single), atol=1e-4)
    assert math.isclose(ce.item(), sum(x.item() for x in losses) / answers, rel_tol=1e-4)


def test_batch_and_neighbours_change_nothing(model):
    image, sam = features(3)
    with torch.no_grad():
        together, *_ = model(image, EXPRESSIONS, sam)
        one = ImageFeatures(image.patches[1:2], image.grid)
        model.projector.forward = lambda im, **_: VisualTokens.ragged(
            [model.projector.linear(im.patches[0, :4])]
        )
        alone, *_ = model(one, EXPRESSIONS[1:2], sam[1:2])
    assert torch.allclose(together[2:3], alone, atol=1e-4)


def test_bidirectional_visual_attention_changes_the_answer_and_only_the_visual_mask(language_dir):
    causal, both = make_model(language_dir), make_model(language_dir, visual_attention="bidirectional")
    both.load_state_dict(causal.state_dict())
    image, sam = features(1)
    with torch.no_grad():
        a = causal.pack(causal.visual_tokens(image), [["the red cup"]])
        b = both.pack(both.visual_tokens(image), [["the red cup"]])
    differs = (a.mask != b.mask)[0, 0]
    rows, columns = differs.nonzero().T
    first, count = len(causal.template.before), 3
    assert (rows >= first).all() and (columns < first + count).all() and (rows < first + count).all()
    assert differs.sum() == count * (count - 1) / 2


def test_seg_is_one_id_found_by_id(language_dir):
    tokenizer = load_tokenizer(language_dir)
    assert tokenizer.encode(f"the cup {SEG} .", add_special_tokens=False).count(len(tokenizer) - 1) == 1


def test_template_refuses_what_it_cannot_fill(language_dir):
    tokenizer = load_tokenizer(language_dir)
    with pytest.raises(ValueError, match="must hold"):
        Template.parse(ProtocolConfig(prompt="no image {expression}"), tokenizer)
    with pytest.raises(ValueError, match="once"):
        Template.parse(ProtocolConfig(answer="[SEG] [SEG]"), tokenizer)
    with pytest.raises(ValueError, match="no token"):
        Template.parse(ProtocolConfig(), tokenizer).encode("   ")


def test_batched_mask_decoding_equals_the_official_decoder(model):
    _, sam = features(3)
    prompts = torch.randn(3, 2, 16, generator=torch.Generator().manual_seed(3))
    decoder, encoder = model.sam.mask_decoder, model.sam.prompt_encoder
    with torch.no_grad():
        ours, quality = decode_masks(model.sam, sam, prompts, outputs="three")
        for i in range(3):
            dense = encoder.no_mask_embed.weight.reshape(1, -1, 1, 1).expand(1, -1, 4, 4)
            masks, iou = decoder(
                image_embeddings=sam[i : i + 1],
                image_pe=encoder.get_dense_pe(),
                sparse_prompt_embeddings=prompts[i : i + 1],
                dense_prompt_embeddings=dense,
                multimask_output=True,
            )
            assert torch.allclose(ours[i], masks[0], atol=1e-5)
            assert torch.allclose(quality[i], iou[0], atol=1e-5)


@pytest.mark.parametrize("portrait", [False, True])
def test_padding_is_cut_off_before_a_mask_is_enlarged(portrait):
    """Logits are 5 on the half of the square that the photograph fills, -5 on its padding."""
    logits = torch.full((1, 1, 4, 4), -5.0)
    logits[:, :, :2] = 5
    frame, size = (4, 8), (8, 16)
    if portrait:
        logits, frame, size = logits.transpose(2, 3), frame[::-1], size[::-1]
    full = upscale_logits(logits, 8, frame, *size)
    assert full.shape == (1, 1, *size) and (full > 0).all()


def test_stage_1_freezes_the_language_model_but_for_seg(model):
    image, sam = features(3)
    named = model.set_stage(1)
    assert not any("lora_" in n for n, _ in named)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = torch.optim.AdamW([p for _, p in named], lr=1e-2, weight_decay=0.0)
    logits, ce, *_ = model(image, EXPRESSIONS, sam)
    (logits.square().mean() + ce).backward()
    model.mask_frozen_rows(1)
    optimizer.step()
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    language = {n for n in changed if n.startswith("language.")}
    assert language == {"language.model.embed_tokens.weight", "language.lm_head.weight"}
    for name in language:
        rows = (dict(model.named_parameters())[name] != before[name]).any(1).nonzero().flatten().tolist()
        assert rows == [model.seg_id]
    assert any(n.startswith("projector.") for n in changed)
    assert any(n.startswith("sam.mask_decoder.") for n in changed)
    assert not any("image_encoder" in n or "prompt_encoder" in n for n in changed)


def test_lora_is_left_out_of_stage_1_and_joins_in_stage_2(model):
    """It starts at zero, so leaving it out changes nothing; in stage 2 its weights count."""
    image, sam = features(3)

    def answer():
        with torch.no_grad():
            return model(image, EXPRESSIONS, sam).logits

    untrained = answer()
    model.set_stage(1)
    assert torch.equal(answer(), untrained)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    assert torch.equal(answer(), untrained)
    model.set_stage(2)
    assert not torch.allclose(answer(), untrained, atol=1e-4)


@pytest.mark.parametrize(("dtype", "merged"), [(torch.float32, True), (torch.bfloat16, False)])
def test_merged_lora_answers_alike_and_half_precision_is_left_alone(language_dir, dtype, merged):
    model = make_model(language_dir, dtype=dtype)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    image, sam = features(3)
    weights = model.language.get_decoder().layers[0].self_attn.q_proj.base_layer.weight
    before, state = weights.clone(), {k: v.clone() for k, v in model.trained_state().items()}
    with torch.no_grad():
        apart = model(image, EXPRESSIONS, sam).logits
        model.merge_lora()
        together = model(image, EXPRESSIONS, sam).logits
    assert torch.allclose(together, apart, atol=1e-4)
    assert torch.equal(weights, before) is not merged
    assert all(torch.equal(v, state[k]) for k, v in model.trained_state().items())


def test_stage_2_trains_lora_and_every_named_parameter_gets_a_gradient(model):
    image, sam = features(3)
    named = model.set_stage(2)
    assert any("lora_" in n for n, _ in named)
    # lora_B starts at zero, which would hide lora_A's gradient
    for name, parameter in named:
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    logits, ce, *_ = model(image, EXPRESSIONS, sam)
    (logits.square().mean() + ce).backward()
    dead = [n for n, p in named if p.grad is None or not p.grad.abs().sum() > 0]
    # One prompt token attends to itself among SAM's own tokens: nothing of the decoder is idle.
    assert dead == []


def test_trained_state_round_trip_and_refusal(model, language_dir):
    state = {k: v.clone() for k, v in model.trained_state().items()}
    other = make_model(language_dir)
    with torch.no_grad():
        for p in other.parameters():
            p.add_(1.0) if p.requires_grad else None
    other.load_trained(state, "here")
    assert all(torch.equal(v, other.trained_state()[k]) for k, v in state.items())
    state.pop("projector.linear.bias")
    with pytest.raises(ValueError, match="here is not of this run: 1 tensors missing"):
        other.load_trained(state, "here")


def test_losses_against_plain_loops():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, 3, 4, generator=generator)
    target = (torch.rand(2, 3, 4, generator=generator) > 0.6).float()
    valid = torch.ones(2, 3, 4, dtype=torch.bool)
    valid[1, 2] = False
    bce, dice = [], []
    for i in range(2):
        terms, inter, areas = [], 0.0, 0.0
        for y in range(3):
            for x in range(4):
                if not valid[i, y, x]:
                    continue
                p = 1 / (1 + math.exp(-logits[i, y, x]))
                t = target[i, y, x].item()
                terms.append(-(t * math.log(p) + (1 - t) * math.log(1 - p)))
                inter += p * t
                areas += p + t
        bce.append(np.mean(terms))
        dice.append(1 - (2 * inter + 1) / (areas + 1))
    assert math.isclose(bce_loss(logits, target, valid).item(), np.mean(bce), rel_tol=1e-5)
    assert math.isclose(dice_loss(logits, target, valid).item(), np.mean(dice), rel_tol=1e-5)


def test_each_loss_has_its_own_weight(model):
    weights = TrainingConfig(
        stage1_steps=1,
        stage2_steps=1,
        images_per_step=1,
        expressions_per_image=1,
        ce_weight=1.0,
        bce_weight=2.0,
        dice_weight=0.5,
        caption_weight=10.0,
    )
    logits, target = torch.zeros(1, 2, 2), torch.ones(1, 2, 2)
    found = weighted_losses(logits, torch.tensor(3.0), torch.tensor(5.0), target, None, weights)
    # half certain everywhere: -ln(1/2); 1 - (2 * 2 + 1) / (2 + 4 + 1)
    bce, dice = math.log(2), 2 / 7
    parts = (found.ce.item(), found.bce.item(), found.dice.item(), found.caption.item())
    assert parts == pytest.approx((3, bce, dice, 5))
    assert found.total.item() == pytest.approx(3 + 2 * bce + 0.5 * dice + 10 * 5)
    without = weighted_losses(logits, torch.tensor(3.0), None, target, None, weights)
    assert without.total.item() == pytest.approx(found.total.item() - 50) and without.caption.item() == 0


def test_tiny_sam_round_trip_and_refusals(tmp_path):
    size = TinySamSize(image_size=32, width=16, depth=1, heads=2, prompt_width=16)
    sam = build_tiny_sam(size)
    save_tiny_sam(sam, size, tmp_path)
    again = load_sam(tmp_path)
    assert all(torch.equal(v, again.state_dict()[k]) for k, v in sam.state_dict().items())
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match="model.safetensors"):
        load_sam(tmp_path)
    with pytest.raises(FileNotFoundError, match="svp doctor"):
        load_sam(tmp_path / "nothing")


def test_an_official_checkpoint_that_is_code_is_refused(tmp_path):
    import pickle

    class Evil:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    path = tmp_path / "sam_vit_b.pth"
    path.write_bytes(pickle.dumps(Evil()))
    with pytest.raises((ValueError, pickle.UnpicklingError, RuntimeError)):
        load_sam(path, "vit_b")
    assert not (tmp_path / "ran").exists()


def test_the_seg_head_starts_with_prompts_that_differ(model):
    """States that are nearly alike give prompts of zero mean and the scale of SAM's point prompts."""
    generator = torch.Generator().manual_seed(0)
    states = 3 + 0.01 * torch.randn(64, 32, generator=generator)
    model.start_seg_head(states)
    with torch.no_grad():
        prompts = model.seg_head(states)
    assert torch.allclose(prompts.mean(0), torch.zeros(16), atol=1e-3)
    assert torch.allclose(prompts.std(0), torch.full((16,), 0.5**0.5), atol=1e-3)
    places = torch.rand(1, 500, 2, generator=generator) * 32
    points = model.sam.prompt_encoder.pe_layer.forward_with_coords(places, (32, 32))
    assert points.square().mean().sqrt().item() == pytest.approx(0.5**0.5, rel=0.02)
