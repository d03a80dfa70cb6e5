"""Packs the expressions of an image behind one copy of its visual tokens.

An image's prefix (BOS, visual tokens) stands once in the sequence; every expression is a branch that
sees the prefix and itself. Positions and mask make each branch equal to a conversation of its own,
so training and prediction pay the visual tokens once an image, whatever the number of expressions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.projector import VisualTokens

__all__ = ["Branch", "PackedBatch", "mask_for", "pack"]


@dataclass(frozen=True)
class Branch:
    """One expression behind an image.

    Attributes:
        ids: token ids after the image: question, answer, EOS.
        question_length: how many of them are the question.
    """

    ids: Sequence[int]
    question_length: int


@dataclass(frozen=True)
class PackedBatch:
    """Sequences of ``b`` images holding ``m`` expressions in all.

    Attributes:
        embeddings: ``[b, L, H]``.
        mask: ``[b, 1, L, L]`` bool, true where a query may attend to a key.
        positions: ``[b, L]`` position ids; branches all start behind the prefix.
        seg_row, seg_column: ``[m]`` where each expression's ``[SEG]`` stands.
        target_row, target_column: ``[t]`` positions whose next token is an answer token.
        target_ids: ``[t]`` that next token.
        image_index: ``[m]`` image of each expression.
        question_column: ``[m]`` the last token of each expression's question.
        branch: ``[b, L]`` 0 in the prefix, the expression's number in its image behind it, -1 in padding.
        is_visual: ``[b, L]`` bool.
    """

    embeddings: Tensor
    mask: Tensor
    positions: Tensor
    seg_row: Tensor
    seg_column: Tensor
    target_row: Tensor
    target_column: Tensor
    target_ids: Tensor
    image_index: Tensor
    question_column: Tensor
    branch: Tensor
    is_visual: Tensor


def mask_for(implementation: str, mask: Tensor, dtype: torch.dtype) -> Tensor:
    """A bool mask as transformers' attention of that name reads it; a mask of four axes is handed on as is.

    ``sdpa`` takes bool. ``eager`` adds the mask to the scores: bool there would hide nothing.
    """
    if implementation == "sdpa":
        return mask
    return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def pack(
    visual: VisualTokens,
    branches: Sequence[Sequence[Branch]],
    before: Sequence[int],
    embed: torch.nn.Module,
    seg_id: int,
    *,
    bidirectional: bool = False,
) -> PackedBatch:
    """Splice visual tokens and expressions into padded sequences.

    Args:
        visual: visual tokens of ``b`` images.
        branches: the expressions of each image, in order.
        before: ids in front of the visual tokens.
        embed: the language model's input embeddings.
        seg_id: id of ``[SEG]``; it is found by this id, never by counting visual tokens.
        bidirectional: visual tokens attend to one another in both directions.

    Raises:
        ValueError: an answer does not hold ``[SEG]`` exactly once.
    """
    device = visual.embeddings.device
    counts = visual.lengths.tolist()
    prefix = [len(before) + k for k in counts]
    lengths = [p + sum(len(e.ids) for e in group) for p, group in zip(prefix, branches, strict=True)]
    b, longest = len(counts), max(lengths)

    ids = torch.zeros(b, longest, dtype=torch.long)
    positions = torch.zeros(b, longest, dtype=torch.long)
    branch = torch.full((b, longest), -1, dtype=torch.long)
    is_visual = torch.zeros(b, longest, dtype=torch.bool)
    seg: list[tuple[int, int, int]] = []
    targets: list[tuple[int, int, int]] = []
    for row, group in enumerate(branches):
        ids[row, : len(before)] = torch.tensor(list(before), dtype=torch.long)
        is_visual[row, len(before) : prefix[row]] = True
        branch[row, : prefix[row]] = 0
        positions[row, : prefix[row]] = torch.arange(prefix[row])
        start = prefix[row]
        for number, item in enumerate(group, start=1):
            stop = start + len(item.ids)
            ids[row, start:stop] = torch.tensor(list(item.ids), dtype=torch.long)
            branch[row, start:stop] = number
            positions[row, start:stop] = torch.arange(prefix[row], prefix[row] + len(item.ids))
            found = [i for i, token in enumerate(item.ids) if token == seg_id]
            if len(found) != 1:
                raise ValueError(f"an answer must hold [SEG] once, found {len(found)} in {list(item.ids)}")
            seg.append((row, start + found[0], start + item.question_length - 1))
            answer = range(item.question_length, len(item.ids))
            targets += [(row, start + offset - 1, item.ids[offset]) for offset in answer]
            start = stop

    embeddings = embed(ids.to(device))
    is_visual = is_visual.to(device)
    embeddings = embeddings.masked_scatter(is_visual.unsqueeze(-1), visual.embeddings.to(embeddings.dtype))
    order = torch.arange(longest)
    sees = (branch[:, None, :] == 0) | (branch[:, None, :] == branch[:, :, None])
    mask = sees & (order[None, None, :] <= order[None, :, None])
    mask = mask.to(device)
    if bidirectional:
        mask = mask | (is_visual[:, None, :] & is_visual[:, :, None])
    rows, columns, questions = torch.tensor(seg, device=device).T
    target = torch.tensor(targets, device=device).T
    return PackedBatch(
        embeddings=embeddings,
        mask=mask[:, None],
        positions=positions.to(device),
        seg_row=rows,
        seg_column=columns,
        target_row=target[0],
        target_column=target[1],
        target_ids=target[2],
        image_index=rows,
        question_column=questions,
        branch=branch.to(device),
        is_visual=is_visual,
    )
