"""Point prompts through SAM's mask decoder: the official way, and an exact faster one.

Both return the candidates that pass the predicted-IoU gate, as low-resolution logits. The exact engine
computes what the official decoder computes, in another order (equal up to floating-point rounding):

- what is the same for every prompt is computed once: the first image-side keys, values and queries;
- a projection of the ``n`` image cells that only meets the few prompt tokens is moved to the token side:
  ``(X W_k) q = X (W_k q)``; with ``t`` tokens and ``H`` heads that costs ``t H`` columns in place of the
  inner width, and the output projection of image-to-token attention is folded likewise;
- the IoU head reads the tokens alone, so a prompt whose three candidates all fail is never up-scaled.

Prompts of several images go through it together, where one image asks too few to fill a GPU.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor
from torch.nn import functional as F

from harness.precision import without_autocast

__all__ = ["Candidates", "exact_candidates", "full_resolution", "official_candidates", "select_levels"]

Gate = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Candidates:
    """Candidates of one crop that passed the gate.

    Attributes:
        logits: ``[M, 4h, 4w]`` low-resolution mask logits, in SAM's padded square frame.
        predicted_iou: ``[M]``.
        levels: ``[M]`` int64, 0 sub-part, 1 part, 2 whole.
        points: ``[M]`` int64, index of the prompt.
    """

    logits: Tensor
    predicted_iou: Tensor
    levels: Tensor
    points: Tensor


def _prompts(sam: Sam, points: Tensor) -> tuple[Tensor, Tensor]:
    """SAM's sparse and dense embeddings of one foreground point each."""
    points = points.to(sam.device)
    labels = torch.ones(len(points), 1, dtype=torch.int, device=points.device)
    return sam.prompt_encoder(points=(points[:, None], labels), boxes=None, masks=None)


def select_levels(ious: Tensor, gate: Gate) -> tuple[Tensor, Tensor, Tensor]:
    """Flat indices of ``ious`` ``[P, 3]`` that pass, with their prompt and level."""
    levels = torch.arange(ious.shape[1], device=ious.device).expand_as(ious).flatten()
    kept = torch.nonzero(gate(ious.flatten(), levels)).flatten()
    return kept, torch.div(kept, ious.shape[1], rounding_mode="floor"), levels[kept]


def official_candidates(sam: Sam, embedding: Tensor, points: Tensor, gate: Gate) -> Candidates:
    """Every prompt through ``sam.prompt_encoder`` and ``sam.mask_decoder``, then the gate.

    Args:
        sam: in eval mode.
        embedding: ``[1, C, h, w]`` of the image encoder.
        points: ``[P, 2]`` x, y in SAM's input frame.
        gate: ``(predicted_iou [M], levels [M]) -> bool [M]``.
    """
    sparse, dense = _prompts(sam, points)
    logits, ious = sam.mask_decoder(
        image_embeddings=embedding,
        image_pe=sam.prompt_encoder.get_dense_pe(),
        sparse_prompt_embeddings=sparse,
        dense_prompt_embeddings=dense,
        multimask_output=True,
    )
    kept, prompts, levels = select_levels(ious, gate)
    return Candidates(logits.flatten(0, 1)[kept], ious.flatten()[kept], levels, prompts)


def _heads(linear: torch.nn.Linear, heads: int) -> tuple[Tensor, Tensor]:
    """Weight ``[heads, c, C]`` and bias ``[heads, c]`` of a projection, by head."""
    return linear.weight.unflatten(0, (heads, -1)), linear.bias.unflatten(0, (heads, -1))


def _of_each_image(left: Tensor, right: Tensor, prompts: Sequence[int]) -> Tensor:
    """``[P, r, m]``: the rows ``[P, r, k]`` of each prompt times the matrix ``[B, k, m]`` of its image."""
    parts = [
        (rows.flatten(0, 1) @ matrix).reshape(len(rows), left.shape[1], right.shape[2])
        for rows, matrix in zip(left.split(prompts), right, strict=True)
    ]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _tokens_to_image(
    attention: Attention,
    tokens: Tensor,
    cells: Tensor,
    position: Tensor,
    shared: Sequence[int] | None = None,
) -> Tensor:
    """Token-to-image attention with the image-side projections moved to the tokens.

    Args:
        attention: SAM's ``Attention``.
        tokens: ``[P, t, C]`` queries, position added.
        cells: ``[P, n, C]`` image side, or ``[B, n, C]`` where the prompts of an image share it.
        position: ``[n, C]`` added to the keys only.
        shared: how many prompts share each of ``cells``; ``None`` where each has its own.

    Returns:
        ``[P, t, C]``.
    """
    heads, t = attention.num_heads, tokens.shape[1]
    wk, _ = _heads(attention.k_proj, heads)
    wv, bv = _heads(attention.v_proj, heads)
    q = attention.q_proj(tokens).unflatten(2, (heads, -1)) * wk.shape[1] ** -0.5
    # the key bias adds the same to all scores of a query: softmax does not see it
    probe = torch.einsum("pthc,hcd->phtd", q, wk).flatten(1, 2)
    if shared is not None:
        scores = _of_each_image(probe, (cells + position).transpose(1, 2), shared)
        mixed = _of_each_image(scores.softmax(dim=-1), cells, shared)
    else:
        scores = probe @ cells.transpose(1, 2) + probe @ position.T
        mixed = scores.softmax(dim=-1) @ cells
    values = torch.einsum("phtd,hcd->pthc", mixed.unflatten(1, (heads, t)), wv) + bv
    return attention.out_proj(values.flatten(2))


def _image_to_tokens(
    attention: Attention,
    cells: Tensor,
    position: Tensor,
    keys: Tensor,
    values: Tensor,
    shared: Sequence[int] | None = None,
) -> Tensor:
    """Image-to-token attention, query and output projections of the image side moved to the tokens.

    Args:
        attention: SAM's ``Attention``.
        cells: ``[P, n, C]`` image side, or ``[B, n, C]`` where the prompts of an image share it.
        position: ``[n, C]`` added to the queries.
        keys: ``[P, t, C]`` tokens with position.
        values: ``[P, t, C]`` tokens.
        shared: how many prompts share each of ``cells``; ``None`` where each has its own.

    Returns:
        ``[P, n, C]``.
    """
    heads, t = attention.num_heads, keys.shape[1]
    wq, bq = _heads(attention.q_proj, heads)
    k = attention.k_proj(keys).unflatten(2, (heads, -1)) * wq.shape[1] ** -0.5
    probe = torch.einsum("pthc,hcd->phtd", k, wq).flatten(1, 2)
    bias = torch.einsum("pthc,hc->pht", k, bq).flatten(1)
    if shared is not None:
        scores = _of_each_image(probe, (cells + position).transpose(1, 2), shared)
    else:
        scores = probe @ cells.transpose(1, 2) + probe @ position.T
    weights = (scores + bias[..., None]).unflatten(1, (heads, t)).softmax(dim=2).flatten(1, 2)
    v = attention.v_proj(values).unflatten(2, (heads, -1))
    wo = attention.out_proj.weight.unflatten(1, (heads, -1))
    folded = torch.einsum("pthc,dhc->phtd", v, wo).flatten(1, 2)
    return torch.baddbmm(attention.out_proj.bias, weights.transpose(1, 2), folded)


def exact_candidates(
    sam: Sam, embeddings: Tensor, points: Tensor, gate: Gate, prompts: Sequence[int] | None = None
) -> Candidates:
    """The candidates of :func:`official_candidates`, faster (see the module's head), of one image or several.

    Args:
        sam: in eval mode.
        embeddings: ``[B, C, h, w]`` of the image encoder.
        points: ``[P, 2]`` x, y in SAM's input frame; those of an image stand together, in the images' order.
        gate: ``(predicted_iou [M], levels [M]) -> bool [M]``.
        prompts: how many of ``points`` each image asks; not needed for one image.
    """
    decoder = sam.mask_decoder
    with without_autocast(embeddings):  # else neighbouring points get each other's phases
        sparse, dense = _prompts(sam, points)
        position = sam.prompt_encoder.get_dense_pe()[0].flatten(1).T
    output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    prompt = torch.cat([output_tokens.expand(len(points), -1, -1), sparse], dim=1)
    # without mask prompts the dense embedding is one vector for all prompts
    cells = (embeddings + dense[:1]).flatten(2).transpose(1, 2)
    grid = embeddings.shape[-2:]

    tokens = prompt
    shared: Sequence[int] | None = [len(points)] if prompts is None else prompts
    for layer in decoder.transformer.layers:
        if layer.skip_first_layer_pe:
            tokens = layer.norm1(layer.self_attn(q=tokens, k=tokens, v=tokens))
        else:
            placed = tokens + prompt
            tokens = layer.norm1(tokens + layer.self_attn(q=placed, k=placed, v=tokens))
        seen = _tokens_to_image(layer.cross_attn_token_to_image, tokens + prompt, cells, position, shared)
        tokens = layer.norm2(tokens + seen)
        tokens = layer.norm3(tokens + layer.mlp(tokens))
        told = _image_to_tokens(
            layer.cross_attn_image_to_token, cells, position, tokens + prompt, tokens, shared
        )
        parts = zip(told.split(shared), cells, strict=True) if shared is not None else [(told, cells)]
        for part, before in parts:
            part.add_(before)
        cells, shared = layer.norm4(told), None
    final = decoder.transformer.final_attn_token_to_image
    tokens = decoder.transformer.norm_final_attn(
        tokens + _tokens_to_image(final, tokens + prompt, cells, position)
    )

    with without_autocast(embeddings):  # else near candidates tie
        ious = decoder.iou_prediction_head(tokens[:, 0].float())[:, 1:]
    kept, asked, levels = select_levels(ious, gate)
    alive, place = torch.unique(asked, return_inverse=True)
    up = decoder.output_upscaling(cells[alive].transpose(1, 2).unflatten(2, grid))
    logits = torch.empty(len(kept), *up.shape[-2:], device=up.device)
    for level in range(ious.shape[1]):
        of_level = torch.nonzero(levels == level).flatten()
        weights = decoder.output_hypernetworks_mlps[level + 1](tokens[asked[of_level], level + 2])
        logits[of_level] = torch.einsum("mc,mchw->mhw", weights, up[place[of_level]]).float()
    return Candidates(logits, ious.flatten()[kept], levels, asked)


def full_resolution(sam: Sam, logits: Tensor, input_size: tuple[int, int], size: tuple[int, int]) -> Tensor:
    """``[M, H, W]`` logits at image resolution: up to SAM's square, padding cut off, then to ``size``.

    The same two bilinear steps as ``Sam.postprocess_masks``; a step that changes no size is left out.
    """
    side = sam.image_encoder.img_size
    result = F.interpolate(logits[:, None], (side, side), mode="bilinear", align_corners=False)
    result = result[..., : input_size[0], : input_size[1]]
    if tuple(result.shape[-2:]) != tuple(size):
        result = F.interpolate(result, size, mode="bilinear", align_corners=False)
    return result[:, 0]
