"""Free decoding: the model says its answer itself, and may fail to say ``[SEG]``.

Each step packs every expression with a ``[SEG]`` behind what was said so far. The state before that
probe tells the next token; where that token is ``[SEG]``, the state that the protocol reads there is already
the prompt of the mask decoder, the very one that a forced answer of the same words would give. Answers are
short, so nothing is cached between steps.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.models.packing import Branch, pack
from harness.models.ris import RISModel
from harness.projector import VisualTokens

__all__ = ["generate_prompts"]


@torch.no_grad()
def generate_prompts(
    model: RISModel, visual: VisualTokens, expressions: Sequence[Sequence[str]], max_new_tokens: int
) -> tuple[Tensor, Tensor]:
    """Greedy answers up to ``[SEG]``.

    Args:
        model: the assembled model.
        visual: visual tokens of ``b`` images.
        expressions: the expressions of each image, ``m`` in all.
        max_new_tokens: most tokens an answer may have, ``[SEG]`` included.

    Returns:
        ``[m, 1, C]`` sparse prompts, zeros where ``[SEG]`` was not said, and ``[m]`` bool whether it was.
    """
    end = model.template.tokenizer.eos_token_id
    questions = []
    for group in expressions:
        encoded = [model.template.encode(text) for text in group]
        questions.append([ids[:length] for ids, length in encoded])
    said: list[list[list[int]]] = [[[] for _ in group] for group in questions]
    place = [(image, k) for image, group in enumerate(questions) for k in range(len(group))]
    speaking = torch.ones(len(place), dtype=torch.bool)
    emitted = torch.zeros(len(place), dtype=torch.bool)
    prompts: Tensor | None = None
    for _ in range(max_new_tokens):
        branches = [
            [Branch([*q, *a, model.seg_id], len(q)) for q, a in zip(group, answers, strict=True)]
            for group, answers in zip(questions, said, strict=True)
        ]
        packed = pack(
            visual,
            branches,
            model.template.before,
            model.language.get_input_embeddings(),
            model.seg_id,
            bidirectional=model.options.visual_attention == "bidirectional",
        )
        hidden = model.hidden(packed)
        head = model.language.get_output_embeddings()
        before = hidden[packed.seg_row, packed.seg_column - 1]
        words = head(before.to(head.weight.dtype)).argmax(-1).cpu()
        states = model.seg_prompts(hidden, packed)
        if prompts is None:
            prompts = torch.zeros_like(states)
        arrived = speaking & (words == model.seg_id)
        prompts[arrived.to(prompts.device)] = states[arrived.to(states.device)]
        emitted |= arrived
        speaking &= ~arrived
        if end is not None:
            speaking &= words != end
        if not speaking.any():
            break
        for number in torch.nonzero(speaking).flatten().tolist():
            image, k = place[number]
            said[image][k].append(int(words[number]))
    assert prompts is not None
    return prompts, emitted
