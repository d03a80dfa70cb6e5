"""Pretrains what GLaMM's weights bring to the paper's first stage: a model that already refers.

SVP starts from a multimodal model that segments what is referred to, and aligns another projector to it.
Its tiny stand-in reads scenes told in words, so it favours no projector. Language model, ``[SEG]`` head
and mask decoder learn together from the masks of the pretraining pool; every row starts from them.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoTokenizer, LlamaForCausalLM

from harness.config import PretrainConfig, RunConfig
from harness.models.losses import bce_loss, dice_loss
from harness.models.sam import decode_masks, load_sam, region_embeddings, sam_input
from harness.models.seg_head import fit_start, make_seg_head
from harness.pretraining.optimise import optimise
from harness.pretraining.pool import Pool
from harness.pretraining.telling import asked, naming, story_slots, told_states
from harness.seeds import forked_rng, numpy_generator
from harness.tensors import save_tensors

__all__ = ["pretrain_grounding"]

# Stories that the head's start is fitted to.
_FITTED = 400
# Weight of the captions beside the losses of the mask.
_NAMING = 2.0


def pretrain_grounding(
    run: RunConfig, config: PretrainConfig, pool: Pool, language_dir: Path, sam_dir: Path, out_dir: Path
) -> dict[str, float]:
    """Train and write ``start.safetensors`` and the language model with its tokenizer into ``out_dir``.

    Args:
        run: supplies the losses' weights.
        config: steps, batch and rate.
        pool: images, masks and stories.
        language_dir: the pretrained language model.
        sam_dir: the pretrained SAM; its encoder stays frozen.
        out_dir: where the weights go.

    Returns:
        The mean loss and IoU of the last steps.
    """
    tokenizer = AutoTokenizer.from_pretrained(language_dir)
    language = LlamaForCausalLM.from_pretrained(language_dir)
    sam = load_sam(sam_dir)
    words = tokenizer.get_vocab()
    stories = pool.stories()
    slots = story_slots(stories, words)
    by_image = [[] for _ in range(len(pool))]  # type: list[list[int]]
    for row, story in enumerate(stories):
        by_image[story.image].append(row)
    told = [rows for rows in by_image if rows]
    with torch.no_grad():
        inputs = torch.stack([sam_input(pool.image(i), sam) for i in range(len(pool))])
        encoded = torch.cat([sam.image_encoder(part) for part in inputs.split(config.batch)])
    side = 4 * encoded.shape[-1]
    with forked_rng("start", config.seed):
        head = make_seg_head(language.config.hidden_size, encoded.shape[1])

    def masks(rows: np.ndarray) -> Tensor:
        meant = np.stack([pool.object_mask(stories[r].image, stories[r].ann_id) for r in rows])
        return F.adaptive_avg_pool2d(torch.from_numpy(meant).float()[:, None], side)

    with torch.no_grad():
        rng = numpy_generator("start", config.seed)
        rows = rng.choice(len(stories), min(_FITTED, len(stories)), replace=False)
        regions = region_embeddings(encoded[[stories[r].image for r in rows]], masks(rows))[:, 0]
        fit_start(head, told_states(language, words, [stories[r] for r in rows], rng), regions)

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        images = rng.choice(len(told), config.start_images, replace=False)
        each = run.training.expressions_per_image
        rows = np.concatenate([rng.choice(told[i], min(each, len(told[i])), replace=False) for i in images])
        told_so = [asked(stories[r], rng) for r in rows]
        states = told_states(language, words, told_so, rng, cells=True)
        embeddings = encoded[[stories[r].image for r in rows]]
        logits = decode_masks(sam, embeddings, head(states)[:, None])[0][:, 0]
        target = masks(rows)[:, 0]
        loss = run.training.bce_weight * bce_loss(logits, target)
        loss = loss + run.training.dice_weight * dice_loss(logits, target)
        naming_loss, named = naming(language, states, told_so, slots)
        loss = loss + _NAMING * naming_loss
        with torch.no_grad():
            guess, truth = (logits > 0).flatten(1), (target > 0.5).flatten(1)
            iou = (guess & truth).sum(1) / (guess | truth).sum(1).clamp(min=1)
        return loss, {"iou": iou.mean().item(), **named}

    decoder = sam.mask_decoder.requires_grad_(True)
    language.requires_grad_(True)
    parameters = [*language.parameters(), *head.parameters(), *decoder.parameters()]
    summary = optimise("start", parameters, config.start_steps, config.learning_rate, step_loss, config.seed)
    language.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    named = {"seg_head": head, "mask_decoder": decoder}
    save_tensors(
        out_dir / "start.safetensors",
        {f"{part}.{k}": v.detach() for part, module in named.items() for k, v in module.state_dict().items()},
    )
    return summary
