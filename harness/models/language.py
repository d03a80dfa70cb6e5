"""The language model and its tokenizer: one ``[SEG]`` id, LoRA through peft, parsed templates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import nn
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedTokenizerBase,
)

from harness.config import LanguageConfig, ProtocolConfig
from harness.models.loading import load_strictly
from harness.seeds import seed_of

__all__ = ["SEG", "Template", "add_lora", "load_language", "load_tokenizer"]

SEG = "[SEG]"
_T = TypeVar("_T")


# LLaVA's checkpoints hold the language model beside the vision tower, under one of two names.
_INSIDE_LLAVA = {
    r"^language_model\.model\.": "model.",
    r"^language_model\.lm_head\.": "lm_head.",
    r"^model\.language_model\.": "model.",
}


def _open_tokenizer(source: Path | str) -> tuple[PreTrainedTokenizerBase, bool]:
    """The tokenizer with ``[SEG]``, and whether ``[SEG]`` is new to it."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    new = SEG not in tokenizer.get_vocab()
    tokenizer.add_tokens([SEG], special_tokens=True)
    for text in (SEG, f"it is {SEG} .", f"it is{SEG}."):
        ids = tokenizer.encode(text, add_special_tokens=False)
        if ids.count(tokenizer.convert_tokens_to_ids(SEG)) != 1:
            raise ValueError(f"{source}: '{text}' does not hold [SEG] as exactly one token ({ids})")
    return tokenizer, new


def load_tokenizer(source: Path | str) -> PreTrainedTokenizerBase:
    """The tokenizer at ``source`` with ``[SEG]`` as exactly one id.

    Raises:
        ValueError: ``[SEG]`` does not encode to one id (some tokenizers split it after a space).
    """
    return _open_tokenizer(source)[0]


def load_language(
    config: LanguageConfig, source: Path | str, dtype: torch.dtype
) -> tuple[Any, PreTrainedTokenizerBase]:
    """A causal language model with room for ``[SEG]``, and its tokenizer.

    Of a model that holds a language model beside other towers (LLaVA) it is that language model. A new
    ``[SEG]`` starts as the mean of the known tokens (transformers' default), so that the model starts
    from a token it can read; one that the checkpoint knows (LISA, GLaMM) is left as it is.

    Raises:
        OSError: nothing there that transformers can load; the message is its own.
        ValueError: weights are missing, or ``[SEG]`` is not one token.
    """
    tokenizer, new = _open_tokenizer(source)
    declared = AutoConfig.from_pretrained(source)
    options: dict[str, Any] = {"dtype": dtype, "attn_implementation": config.attention}
    if hasattr(declared, "text_config") and type(declared) not in MODEL_FOR_CAUSAL_LM_MAPPING:
        options |= {"config": declared.text_config, "key_mapping": _INSIDE_LLAVA}
    model = load_strictly(AutoModelForCausalLM, source, **options)
    if model.get_input_embeddings().num_embeddings < len(tokenizer):
        # The default draws the new rows from a normal; only its mean is wanted, without global RNG.
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    if new:  # some vocabularies keep untrained rows in reserve: [SEG] may have taken one of them
        row = tokenizer.convert_tokens_to_ids(SEG)
        with torch.no_grad():
            for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
                layer.weight[row] = layer.weight[:row].mean(0)
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
    """A protocol's prompts and answers as token ids around the image and the expression.

    Where a protocol has several, an expression's own words draw one of each, so that the same expression is
    always asked alike, in training and in evaluation.

    Attributes:
        before: ids in front of the visual tokens, the tokenizer's BOS included.
        tokenizer: encodes expressions.
        questions: texts between image and expression, and between expression and answer.
        answers: texts holding ``[SEG]``.
        lower_case: expressions are lower-cased.
        end_of_answer: EOS follows the answer.
        seg_state: which state prompts the mask decoder: that ``at`` ``[SEG]``, or that ``before`` it.
    """

    before: tuple[int, ...]
    tokenizer: PreTrainedTokenizerBase
    questions: tuple[tuple[str, str], ...]
    answers: tuple[str, ...]
    lower_case: bool
    end_of_answer: bool = True
    seg_state: Literal["at", "before"] = "at"

    @classmethod
    def parse(cls, protocol: ProtocolConfig, tokenizer: PreTrainedTokenizerBase) -> Template:
        """From a protocol's strings.

        Raises:
            ValueError: ``{image}``, ``{expression}`` or ``[SEG]`` is missing or out of order, or the prompts
                do not begin alike.
        """
        heads, questions = set(), []
        for prompt in protocol.prompts:
            head, image, rest = prompt.partition("{image}")
            between, expression, after = rest.partition("{expression}")
            if not image or not expression:
                raise ValueError(f"prompt '{prompt}' must hold {{image}} and then {{expression}}")
            heads.add(head)
            questions.append((between, after))
        if len(heads) > 1:
            raise ValueError(f"prompts must be the same up to {{image}}, there are {sorted(heads)}")
        for answer in protocol.answers:
            if answer.count(SEG) != 1:
                raise ValueError(f"answer '{answer}' must hold {SEG} once")
        before = tokenizer.encode(heads.pop(), add_special_tokens=False)
        if tokenizer.bos_token_id is not None:
            before = [tokenizer.bos_token_id, *before]
        return cls(
            tuple(before),
            tokenizer,
            tuple(questions),
            protocol.answers,
            protocol.lower_case,
            protocol.end_of_answer,
            protocol.seg_state,
        )

    @cached_property
    def encode(self) -> Callable[[str], tuple[Sequence[int], int]]:
        """:meth:`_encode_expression`, remembered: epochs, and places asked for, repeat the same texts."""
        return lru_cache(maxsize=2**16)(self._encode_expression)

    def words(self, expression: str) -> list[int]:
        """Ids of the expression alone.

        Raises:
            ValueError: it has no token.
        """
        ids = self._encode(expression.lower() if self.lower_case else expression)
        if not ids:
            raise ValueError(f"expression {expression!r} has no token")
        return ids

    def _encode_expression(self, expression: str) -> tuple[Sequence[int], int]:
        """Ids after the image (question, answer, EOS) and how many of them belong to the question.

        Question and answer are encoded as one text, as they will be read: a tokenizer may join the last
        character of one with the first of the other, and such a token belongs to the answer.

        Raises:
            ValueError: the expression has no token.
        """
        self.words(expression)  # refuses one without a token
        text = expression.lower() if self.lower_case else expression
        before, after = self._drawn(self.questions, "question", text)
        question = f"{before}{text}{after}"
        ids = self._encode(question + self._drawn(self.answers, "answer", text))
        length = 0
        for ours, alone in zip(ids, self._encode(question), strict=False):
            if ours != alone:
                break
            length += 1
        if self.end_of_answer and self.tokenizer.eos_token_id is not None:
            ids = [*ids, self.tokenizer.eos_token_id]
        return ids, length

    def _encode(self, text: str) -> list[int]:
        return self.tokenizer.encode(text, add_special_tokens=False)

    @staticmethod
    def _drawn(choices: tuple[_T, ...], what: str, text: str) -> _T:
        return choices[seed_of(what, text) % len(choices)]
