"""Runs a decoder that drops visual tokens after some layers, each expression its own (FastV's way).

Up to the layer that decides, the packed sequence of an image serves all its expressions. From there on
each expression is a sequence of its own: what one drops, another may keep.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

from harness.models.packing import PackedBatch, mask_for
from harness.projector import LanguageHook

__all__ = ["layer_mean", "pruned_hidden"]


def layer_mean(hook: LanguageHook | None, count: int, layers: int) -> float:
    """Visual tokens that a layer sees, averaged over the ``layers`` of a language model."""
    if hook is None:
        return float(count)
    first = min(hook.layer, layers)
    return (first * count + (layers - first) * hook.kept(count)) / layers


def _with_weights(layer: Any, hidden: Tensor, **kwargs: Any) -> tuple[Tensor, Tensor]:
    """A layer's output and its attention ``[b, heads, L, L]``: this layer alone runs the plain attention.

    It is not checkpointed: the backward pass would compute it again with the usual attention.
    """
    attention, weights = layer.self_attn, []
    usual = attention.config
    attention.config = copy.copy(usual)
    attention.config._attn_implementation = "eager"
    checkpointed, layer.gradient_checkpointing = getattr(layer, "gradient_checkpointing", False), False
    handle = attention.register_forward_hook(lambda _, __, out: weights.append(out[1]))
    try:
        hidden = layer(hidden, **kwargs)
    finally:
        handle.remove()
        attention.config, layer.gradient_checkpointing = usual, checkpointed
    return hidden, weights[0]


def _own_sequences(packed: PackedBatch, attention: Tensor, hook: LanguageHook) -> tuple[Tensor, Tensor]:
    """Columns ``[m, L']`` of the packed sequence that each expression goes on with, and which are real."""
    chosen = []
    for row, column, end in zip(
        packed.seg_row.tolist(), packed.seg_column.tolist(), packed.question_column.tolist(), strict=True
    ):
        branch, visual = packed.branch[row], packed.is_visual[row]
        stays = (branch == 0) | (branch == branch[column])
        places = visual.nonzero().flatten()
        stays[places] = False
        stays[places[hook.keep(attention[row, end, places])]] = True
        chosen.append(stays.nonzero().flatten())
    longest = max(len(c) for c in chosen)
    columns = torch.zeros(len(chosen), longest, dtype=torch.long, device=attention.device)
    real = torch.zeros_like(columns, dtype=torch.bool)
    for i, own in enumerate(chosen):
        columns[i, : len(own)], real[i, : len(own)] = own, True
    return columns, real


def pruned_hidden(decoder: Any, packed: PackedBatch, hook: LanguageHook) -> Tensor:
    """``[b, L, H]`` last hidden states in the packed layout; the shared prefix, which no one reads, is zero.

    Args:
        decoder: a decoder of transformers with ``layers``, ``rotary_emb`` and ``norm`` (Llama, Qwen2 …).
        packed: the batch.
        hook: after how many layers what is dropped.

    Raises:
        ValueError: the decoder is built otherwise, or has not more layers than see everything.
    """
    if any(not hasattr(decoder, name) for name in ("layers", "rotary_emb", "norm")):
        raise ValueError(f"{type(decoder).__name__} has no plain list of layers to drop tokens between")
    if not 1 <= hook.layer < len(decoder.layers):
        raise ValueError(
            f"tokens cannot be dropped after layer {hook.layer} of {len(decoder.layers)}; "
            f"`layer` must be 1 to {len(decoder.layers) - 1}"
        )
    hidden, positions = packed.embeddings, packed.positions
    rotary = decoder.rotary_emb(hidden, position_ids=positions)
    usual, dtype = decoder.config._attn_implementation, hidden.dtype
    mask = mask_for(usual, packed.mask, dtype)
    kwargs = {"attention_mask": mask, "position_ids": positions, "position_embeddings": rotary}
    for layer in decoder.layers[: hook.layer - 1]:
        hidden = layer(hidden, **kwargs)
    kwargs["attention_mask"] = mask_for("eager", packed.mask, dtype)
    hidden, weights = _with_weights(decoder.layers[hook.layer - 1], hidden, **kwargs)

    columns, real = _own_sequences(packed, weights.detach().float().mean(1), hook)
    rows = packed.seg_row[:, None]
    hidden, positions = hidden[rows, columns], positions[rows, columns]
    # A padded place repeats the first token, which sees itself: no row of the softmax is empty.
    sees = packed.mask[:, 0][rows[..., None], columns[:, :, None], columns[:, None, :]] & real[:, None, :]
    kwargs = {
        "attention_mask": mask_for(usual, sees[:, None], dtype),
        "position_ids": positions,
        "position_embeddings": decoder.rotary_emb(hidden, position_ids=positions),
    }
    for layer in decoder.layers[hook.layer :]:
        hidden = layer(hidden, **kwargs)
    hidden = decoder.norm(hidden)

    own = real & (packed.branch[rows, columns] > 0)
    out = torch.zeros_like(packed.embeddings)
    return out.index_put((rows.expand_as(columns)[own], columns[own]), hidden[own])
