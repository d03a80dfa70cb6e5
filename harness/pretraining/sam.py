"""Pretrains a tiny SAM of the official classes: first what is where, then masks from points.

From random weights a point prompt teaches the image encoder little, so it learns densely, as SAM's
own encoder comes from a pretext task (arXiv 2304.02643, section 3). Then it is frozen, and prompt encoder
and mask decoder learn from points.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from segment_anything.modeling import Sam
from segment_anything.modeling.transformer import Attention
from torch import Tensor, nn
from torch.nn import functional as F

from harness.config import PretrainConfig, RunConfig
from harness.models.losses import dice_loss
from harness.models.sam import (
    TinySamSize,
    build_tiny_sam,
    decode_masks,
    region_embeddings,
    sam_input,
    save_tiny_sam,
)
from harness.pretraining.optimise import optimise, split_matrices
from harness.pretraining.pool import Pool
from harness.seeds import forked_rng

__all__ = ["pretrain_sam"]

# Prompts of an image and step.
_POINTS = 5
_REGIONS = 3
# Gain of the attention projections that match positions: enough for a peak at the right place.
_MATCH_GAIN = 2.0


def pretrain_sam(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Train a tiny SAM on the pool and save it; returns the mean figures of the last steps."""
    vision = run.models.vision
    size = TinySamSize(
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        width=config.sam_width,
        depth=config.sam_depth,
        heads=config.sam_heads,
        prompt_width=config.sam_prompt_width,
    )
    with forked_rng("sam", config.seed):
        sam = build_tiny_sam(size)
        _match_positions(sam)
        classes = sum(n + 1 for n in pool.class_counts().values())
        head = nn.Conv2d(size.prompt_width, 16 * 4 + size.prompt_width + classes, 1)
    sam.train()
    pixels = torch.stack([sam_input(pool.image(i), sam) for i in range(len(pool))])
    dense = _dense(sam, head, pixels, pool, config)
    prompted = _prompted(sam, pixels, pool, config)
    save_tiny_sam(sam, size, out_dir)
    return {**{f"dense_{k}": v for k, v in dense.items()}, **prompted}


def _match_positions(sam: Sam) -> None:
    """Start each cross-attention with equal query and key projections.

    A point then attends to its own place from the first step on, which random projections take
    thousands of steps to find.
    """
    for name, module in sam.mask_decoder.named_modules():
        if isinstance(module, Attention) and ("cross_attn" in name or "final_attn" in name):
            with torch.no_grad():
                module.q_proj.weight.mul_(_MATCH_GAIN)
                module.k_proj.weight.copy_(module.q_proj.weight)
                module.q_proj.bias.zero_()
                module.k_proj.bias.zero_()


def _dense(sam: Sam, head: nn.Conv2d, pixels: Tensor, pool: Pool, config: PretrainConfig) -> dict[str, float]:
    """Each cell of the image embedding tells, through a linear head that is thrown away, what it holds.

    At the masks' resolution: object or not, detail or not, the offset to the object's centre; and for the
    whole cell, the centre of its object in the prompt encoder's own position code, and its category,
    colour, pattern and size. (SAM's embeddings are known to carry semantics; these do so by design.)
    """
    side = sam.prompt_encoder.image_embedding_size[0]
    width, counts = sam.prompt_encoder.embed_dim, pool.class_counts()
    labels = {k: torch.from_numpy(v) for k, v in pool.patch_labels((side, side)).items()}
    targets = pool.dense_targets(4 * side)
    fine = torch.from_numpy(targets.fine)
    owned = torch.from_numpy(targets.owned)[:, None]
    with torch.no_grad():
        code = sam.prompt_encoder.pe_layer._pe_encoding(torch.from_numpy(targets.centre)).permute(0, 3, 1, 2)
        code = code * owned

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(pool), config.batch, replace=False)
        told = head(sam.image_encoder(pixels[rows]))
        cells, centre = F.pixel_shuffle(told[:, :64], 4), told[:, 64 : 64 + width]
        named = told[:, 64 + width :].flatten(2).split([n + 1 for n in counts.values()], dim=1)
        wanted, seen = fine[rows], fine[rows, :1]
        kind = F.binary_cross_entropy_with_logits(cells[:, :2], wanted[:, :2]) * 2
        offset = ((cells[:, 2:] - wanted[:, 2:]).abs() * seen).sum() / (2 * seen.sum())
        emphasis = 0.1 + owned[rows]
        place = ((centre - code[rows]).square().mean(1, keepdim=True) * emphasis).sum() / emphasis.sum()
        names = torch.zeros(())
        for key, scores in zip(counts, named, strict=True):
            label = labels[key][rows]
            weight = torch.where(label == 0, 0.2, 1.0)
            names = names + (F.cross_entropy(scores, label, reduction="none") * weight).sum() / weight.sum()
        with torch.no_grad():
            guess, truth = cells[:, :1] > 0, seen > 0.5
            iou = (guess & truth).sum() / (guess | truth).sum().clamp(min=1)
        return kind + offset + 2 * place + 0.5 * names, {"iou": iou.item(), "names": names.item()}

    matrices, others = split_matrices(sam.image_encoder.blocks, sam.image_encoder, head)
    return optimise(
        "sam encoder",
        others,
        config.sam_dense_steps,
        config.sam_learning_rate,
        step_loss,
        config.seed,
        matrices,
    )


def _prompted(sam: Sam, pixels: Tensor, pool: Pool, config: PretrainConfig) -> dict[str, float]:
    """Point prompts and region prompts, as SAM learns from points and, for text, from region embeddings.

    Points: the three outputs learn sub-part, part and whole, the single output the whole. A point on a
    detail asks for the detail, then the object, then the object; a point elsewhere on an object asks for
    the object thrice; a point on the background for the background.

    Regions: the prompt is the mean image embedding under an object's mask, and the single output learns
    the object. SAM's text-to-mask trial (arXiv 2304.02643, section 7.5) prompts with an embedding of the
    region too; it is what a ``[SEG]`` prompt, which says what is meant and not where to click, builds on.

    The IoU head regresses the true IoU of each output, as SAM's does.
    """
    # Frozen, so that it keeps what the dense targets taught it, and is run once an image.
    with torch.no_grad():
        encoded = torch.cat([sam.image_encoder(part) for part in pixels.split(config.batch)])

    def masks_of(logits: Tensor, quality: Tensor, wanted: Tensor, balance: float) -> tuple[Tensor, Tensor]:
        logits = logits.flatten(0, 1)
        with torch.no_grad():
            guess, truth = logits > 0, wanted > 0.5
            iou = (guess & truth).flatten(1).sum(1) / (guess | truth).flatten(1).sum(1).clamp(min=1)
        loss = _balanced_bce(logits, wanted, balance) + dice_loss(logits, wanted)
        return loss + F.mse_loss(quality.flatten(), iou), iou.mean()

    def step_loss(step: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(pool), config.batch, replace=False)
        points, masks = zip(*(pool.points(int(r), _POINTS, rng) for r in rows), strict=True)
        coordinates = torch.from_numpy(np.concatenate(points)).float()[:, None]
        sparse, _ = sam.prompt_encoder(
            points=(coordinates, torch.ones(len(coordinates), 1)), boxes=None, masks=None
        )
        balance = max(0.0, 1 - step / (0.4 * config.sam_steps))
        logits, quality = decode_masks(
            sam, encoded[rows].repeat_interleave(_POINTS, 0), sparse, outputs="all"
        )
        # The decoder's own resolution: soft targets there cost a quarter of the full image's pixels.
        side = logits.shape[-1]
        asked = F.adaptive_avg_pool2d(torch.from_numpy(np.concatenate(masks)).float(), side)
        clicked, iou = masks_of(logits, quality, asked[:, [2, 0, 1, 2]].flatten(0, 1), balance)

        regions = np.concatenate([pool.regions(int(r), _REGIONS, rng) for r in rows])
        meant = F.adaptive_avg_pool2d(torch.from_numpy(regions).float()[:, None], side)
        embeddings = encoded[rows].repeat_interleave(_REGIONS, 0)
        prompts = region_embeddings(embeddings, meant)
        named, region_iou = masks_of(*decode_masks(sam, embeddings, prompts), meant[:, 0], balance)
        return clicked + named, {"iou": iou.item(), "region_iou": region_iou.item()}

    parameters = [*sam.prompt_encoder.parameters(), *sam.mask_decoder.parameters()]
    return optimise("sam", parameters, config.sam_steps, config.sam_learning_rate, step_loss, config.seed)


def _balanced_bce(logits: Tensor, target: Tensor, balance: float) -> Tensor:
    """Binary cross-entropy between plain (0) and with object and background at equal weight (1).

    At equal weight first: objects fill a few per cent of the pixels, and plain BCE has the decoder say
    "nothing" before it has found the prompt.
    """
    loss = F.binary_cross_entropy_with_logits(logits, target, reduction="none").flatten(1)
    inside = target.flatten(1)
    outside = 1 - inside
    equal = (loss * inside).sum(1) / inside.sum(1).clamp(min=1)
    equal = equal + (loss * outside).sum(1) / outside.sum(1).clamp(min=1)
    return balance * equal.mean() + 4 * (1 - balance) * loss.mean()
