"""The language model and its tokenizer: one ``[SEG]`` id, LoRA through peft, parsed templates."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerBase

from harness.config import LanguageConfig, ProtocolConfig

__all__ = ["SEG", "Template", "add_lora", "load_language", "load_tokenizer"]

SEG = "[SEG]"


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer at ``source`` with ``[SEG]`` added as exactly one id.

    Raises:
        ValueError: ``[SEG]`` does not encode to one id (some tokenizers split it after a space).
    """
    tokenizer = AutoTokenizer.from_pretrained(source)
    tokenizer.add_tokens([SEG], special_tokens=True)
    for text in (SEG, f"it is {SEG} .", f"it is{SEG}."):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids.count(tokenizer.convert_tokens_to_ids(SEG)) != 1:
            raise ValueError(f"{source}: '{text}' does not hold [SEG] as exactly one token ({ids})")
    return tokenizer


def load_language(
    config: LanguageConfig, source: Path | str, dtype: torch.dtype
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model with room for ``[SEG]``, and its tokenizer.

    The new row of the embeddings starts as the mean of the others (transformers' default), so that
    the model starts from a token it can read.
    """
    tokenizer = load_tokenizer(source)
    model: Any = AutoModelForCausalLM.from_pretrained(
        source, dtype=dtype, attn_implementation=config.attention
    )
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        # The default draws the new rows from a normal; only its mean is wanted, without global RNG.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
        old = len(tokenizer) - 1
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[old:] = layer.weight[:old].mean(0)
    return model, tokenizer


def add_lora(model: nn.Module, config: LanguageConfig) -> None:
    """Insert LoRA adapters in place (LISA and GLaMM: rank 8, alpha 16, on ``q_proj`` and ``v_proj``)."""
    inject_adapter_in_model(
        LoraConfig(
            r=config.lora_rank,
            lora_alpha=config.lora_alpha,
            lora_dropout=config.lora_dropout,
            target_modules=list(config.lora_targets),
        ),
        model,
    )


@dataclass(frozen=True)
class Template:
    """A protocol's prompt and answer as token ids around the image and the expression.

    Attributes:
        before: ids in front of the visual tokens, the tokenizer's BOS included.
        tokenizer: encodes expressions.
        between: text between image and expression.
        after: text between expression and answer.
        answer: text of the answer, holding ``[SEG]``.
        lower_case: expressions are lower-cased.
        end_of_answer: EOS follows the answer.
    """

    before: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase
    between: str
    after: str
    answer: str
    lower_case: bool
    end_of_answer: bool = True

    @classmethod
    def parse(cls, protocol: ProtocolConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
        """From a protocol's strings.

        Raises:
            ValueError: ``{image}``, ``{expression}`` or ``[SEG]`` is missing or out of order.
        """
        head, image, rest = protocol.prompt.partition("{image}")
        between, expression, after = rest.partition("{expression}")
        if not image or not expression:
            raise ValueError(f"prompt '{protocol.prompt}' must hold {{image}} and then {{expression}}")
        if protocol.answer.count(SEG) != 1:
            raise ValueError(f"answer '{protocol.answer}' must hold {SEG} once")
        before = tokenizer.encode(head, add_special_tokens=False) if head else []
        if tokenizer.bos_token_id is not None:
            before = [tokenizer.bos_token_id, *before]
        return cls(
            tuple(before),
            tokenizer,
            between,
            after,
            protocol.answer,
            protocol.lower_case,
            protocol.end_of_answer,
        )

    def encode(self, expression: str) -> tuple[list[int], int]:
        """Ids after the image (question, answer, EOS) and how many of them belong to the question.

        Raises:
            ValueError: the expression has no token.
        """
        text = expression.lower() if self.lower_case else expression
        if not self.tokenizer.encode(text, add_special_tokens=False):
            raise ValueError(f"expression {expression!r} has no token")
        question = self.tokenizer.encode(f"{self.between}{text}{self.after}", add_special_tokens=False)
        answer = self.tokenizer.encode(self.answer, add_special_tokens=False)
        if self.end_of_answer and self.tokenizer.eos_token_id is not None:
            answer = [*answer, self.tokenizer.eos_token_id]
        return question + answer, len(question)
