"""Under autocast nothing that tells near things apart is computed in bfloat16."""

import numpy as np
import torch
from saved_glamm import PROMPT, tiny_sam

from harness.models.sam import decode_masks
from harness.models.vision import _class_attention


def test_the_mask_decoder_is_told_exact_positions(monkeypatch):
    torch.manual_seed(0)
    sam, told = tiny_sam(), []
    forward = sam.mask_decoder.predict_masks
    monkeypatch.setattr(
        sam.mask_decoder, "predict_masks", lambda **given: told.append(given["image_pe"]) or forward(**given)
    )
    side = sam.prompt_encoder.image_embedding_size
    with torch.autocast("cpu", torch.bfloat16):
        decode_masks(sam, torch.randn(2, PROMPT, *side), torch.randn(2, 1, PROMPT))
        rounded = sam.prompt_encoder.get_dense_pe()
    exact = sam.prompt_encoder.get_dense_pe()
    assert torch.equal(told[0], exact)
    assert (rounded.float() - exact).abs().max() > 1e-3  # what it would have been told


def test_the_class_tokens_attention_is_taken_in_float32():
    rng = np.random.default_rng(0)
    query, key = (rng.normal(0, 3, (1, 50, 32)) for _ in range(2))
    q, k = query[:, :1].reshape(1, 1, 2, 16), key.reshape(1, 50, 2, 16)
    scores = np.einsum("bqhd,bkhd->bhk", q, k) / 4
    expected = np.exp(scores - scores.max(-1, keepdims=True))
    expected = (expected / expected.sum(-1, keepdims=True)).sum(1)
    with torch.autocast("cpu", torch.bfloat16):
        got = _class_attention(torch.tensor(query).float(), torch.tensor(key).float(), 2)
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-5)
