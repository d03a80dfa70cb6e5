"""A tiny language model on disk."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from harness.pretraining.models import build_tokenizer

WORDS = "the left right red blue cup star of a on . what is".split()


@pytest.fixture(scope="session")
def language_dir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("language")
    tokenizer = build_tokenizer(WORDS)
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
        )
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
