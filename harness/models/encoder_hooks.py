"""Runs a frozen vision encoder with an encoder hook between the attention and the MLP of each block."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from harness.projector import EncoderHook

__all__ = ["Walk", "hooked_blocks"]


class Walk:
    """One pass through the encoder.

    Attributes:
        sizes: ``[b, k]`` patches that each token stands for so far; ``None`` before the first block.
    """

    def __init__(self, hook: EncoderHook, patches: int, heads: int, blocks: int):
        self.hook, self.patches, self.heads, self.blocks = hook, patches, heads, blocks
        self.sizes: Tensor | None = None

    def block(self, index: int, layer: Any, hidden: Tensor, *_: object, **__: object) -> Tensor:
        """In place of ``layer.forward``."""
        if self.sizes is None:
            self.sizes = hidden.new_ones(hidden.shape[0], self.patches)
        special = hidden.shape[1] - self.sizes.shape[1]
        bias = self.hook.attention_bias(self.sizes)
        if bias is not None:
            # One row for all queries: keys alone are weighted.
            bias = torch.cat([bias.new_zeros(len(bias), special), bias], 1)[:, None, None]
        keys: list[Tensor] = []
        handle = _key_projection(layer).register_forward_hook(lambda _, __, out: keys.append(out))
        try:
            hidden = _attend(layer, hidden, bias)
        finally:
            handle.remove()
        if index < self.blocks:
            by_head = keys[0][:, special:].unflatten(-1, (self.heads, -1)).transpose(1, 2)
            tokens, self.sizes = self.hook.between(
                hidden[:, special:], by_head, self.sizes, block=index, blocks=self.blocks
            )
            hidden = torch.cat([hidden[:, :special], tokens], 1)
        return _feed_forward(layer, hidden)


def _key_projection(layer: nn.Module) -> nn.Module:
    found = [m for name, m in layer.named_modules() if name.split(".")[-1] in ("k_proj", "key")]
    if len(found) != 1:
        raise ValueError(
            f"{type(layer).__name__}: found {len(found)} key projections, an encoder hook needs 1"
        )
    return found[0]


def _is_dinov2(layer: Any) -> bool:
    if hasattr(layer, "layer_scale1"):
        return True
    if hasattr(layer, "layer_norm1"):  # CLIP and SigLIP
        return False
    raise ValueError(f"{type(layer).__name__}: an encoder hook runs in DINOv2, CLIP and SigLIP blocks alone")


def _attend(layer: Any, hidden: Tensor, bias: Tensor | None) -> Tensor:
    if _is_dinov2(layer):
        out, _ = layer.attention(layer.norm1(hidden), attention_mask=bias)
        return hidden + layer.drop_path(layer.layer_scale1(out))
    out, _ = layer.self_attn(hidden_states=layer.layer_norm1(hidden), attention_mask=bias)
    return hidden + out


def _feed_forward(layer: Any, hidden: Tensor) -> Tensor:
    if _is_dinov2(layer):
        return hidden + layer.drop_path(layer.layer_scale2(layer.mlp(layer.norm2(hidden))))
    return hidden + layer.mlp(layer.layer_norm2(hidden))


@contextmanager
def hooked_blocks(
    layers: Iterable[nn.Module], hook: EncoderHook, *, patches: int, heads: int, blocks: int
) -> Iterator[Walk]:
    """While open, one forward pass through ``layers`` runs ``hook`` in the first ``blocks`` of them.

    The hook stands between two residual sums of one block, where no module boundary is, so the blocks'
    own ``forward`` is replaced; parameters and everything around the blocks stay the model's.

    Args:
        layers: the encoder's blocks, in order.
        hook: what happens in them.
        patches: patches an image.
        heads: attention heads.
        blocks: how many blocks run up to the selected layer.

    Yields:
        the pass, whose ``sizes`` are those after the last block.

    Raises:
        ValueError: the blocks are of an unknown kind, or the hook refuses.
    """
    walk = Walk(hook, patches, heads, blocks)
    for index, layer in enumerate(layers):
        layer.forward = partial(walk.block, index, layer)  # type: ignore[method-assign]
    try:
        yield walk
    finally:
        for layer in layers:
            del layer.forward
