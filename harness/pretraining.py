"""Pretrains the tiny vision encoder, language model and SAM on a pool of images of their own.

So that stage 1 starts, as in the paper, from frozen encoders that see something. The pool is disjoint
from every split. Each model is the real class at a small size, saved in the real format; nothing of
this module is used where real weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm import tqdm
from transformers import (
    CLIPVisionConfig,
    CLIPVisionModel,
    Dinov2Config,
    Dinov2Model,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from harness.config import PretrainConfig, RunConfig
from harness.files import write_json
from harness.models.losses import bce_loss, dice_loss
from harness.models.sam import TinySamSize, build_tiny_sam, decode_masks, sam_input, save_tiny_sam
from harness.models.vision import VisionEncoder
from harness.pool import Pool
from harness.seeds import forked_rng, numpy_generator

__all__ = ["pretrain"]


def pretrain(part: str, run: RunConfig, pool_dir: Path, out_dir: Path) -> None:
    """Pretrain one tiny model and write it, with ``done.json`` last.

    Args:
        part: ``vision``, ``language`` or ``sam``.
        run: supplies sizes, steps and the patch grid.
        pool_dir: the pretraining pool of a synthetic data set.
        out_dir: where the model goes.
    """
    config = run.models.pretrain
    if config is None:
        raise ValueError(f"models: {part} is to be pretrained, but there is no 'pretrain' block")
    torch.set_num_threads(config.torch_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    out_dir.mkdir(parents=True, exist_ok=True)
    train: Callable[[RunConfig, PretrainConfig, Pool, Path], dict[str, float]]
    train = {"vision": _vision, "language": _language, "sam": _sam}[part]
    summary = train(run, config, Pool(pool_dir), out_dir)
    write_json(out_dir / "done.json", {"part": part, **summary})


def _optimise(
    name: str,
    parameters: list[nn.Parameter],
    steps: int,
    rate: float,
    step_loss: Callable[[int, np.random.Generator], tuple[Tensor, dict[str, float]]],
    seed: int,
) -> dict[str, float]:
    """AdamW with a one-cycle schedule; returns the mean of each logged value over the last tenth."""
    optimizer = torch.optim.AdamW(parameters, lr=rate, weight_decay=0.01, betas=(0.9, 0.98))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps + 1, pct_start=0.15)
    history: list[dict[str, float]] = []
    bar = tqdm(range(steps), desc=f"pretrain {name}", mininterval=5)
    for step in bar:
        optimizer.zero_grad(set_to_none=True)
        loss, values = step_loss(step, numpy_generator("pretrain", name, seed, step))
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        history.append({"loss": loss.item(), **values})
        bar.set_postfix({k: f"{v:.3f}" for k, v in history[-1].items()}, refresh=False)
    tail = history[-max(1, steps // 10) :]
    return {key: round(float(np.mean([h[key] for h in tail])), 4) for key in tail[0]}


# --- vision ------------------------------------------------------------------------------------------

_VISION = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}


def _vision(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Dense attribute classification: each patch names what covers most of it.

    Targets are the category, colour, pattern and size of the object that covers most of a patch
    (background where none covers a third), from linear heads that are thrown away.
    """
    config_class, model_class = _VISION[run.models.vision.kind]
    shape = {
        "hidden_size": config.vision_width,
        "num_hidden_layers": config.vision_depth,
        "num_attention_heads": config.vision_heads,
        "image_size": run.models.vision.image_size,
        "patch_size": run.models.vision.patch_size,
    }
    ratio = (
        {"mlp_ratio": 3}
        if run.models.vision.kind == "dinov2"
        else {"intermediate_size": 3 * config.vision_width}
    )
    with forked_rng("vision", config.seed):
        model = model_class(config_class(**shape, **ratio))
        heads = nn.ModuleDict(
            {k: nn.Linear(config.vision_width, n + 1) for k, n in pool.class_counts().items()}
        )
    encoder = VisionEncoder(model, run.models.vision)
    model.train().requires_grad_(True)
    pixels = torch.stack([encoder.preprocess(pool.image(i)) for i in range(len(pool))])
    labels = pool.patch_labels(run.models.vision.grid)
    targets = {k: torch.from_numpy(v) for k, v in labels.items()}
    grid_count = run.models.vision.grid[0] * run.models.vision.grid[1]

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(pool), config.batch, replace=False)
        batch = pixels[rows]
        state = model(pixel_values=batch).last_hidden_state[:, -grid_count:]
        loss, correct = torch.zeros(()), []
        for key, head in heads.items():
            scores, target = head(state).flatten(0, 1), targets[key][rows].flatten()
            # Background fills most patches; a class's weight keeps it from filling the loss too.
            weight = torch.where(target == 0, 0.2, 1.0)
            loss = loss + (F.cross_entropy(scores, target, reduction="none") * weight).sum() / weight.sum()
            seen = target > 0
            correct.append((scores.argmax(-1)[seen] == target[seen]).float().mean().item())
        return loss, {"accuracy": float(np.mean(correct))}

    parameters = [*model.parameters(), *heads.parameters()]
    summary = _optimise(
        "vision", parameters, config.vision_steps, config.learning_rate, step_loss, config.seed
    )
    model.save_pretrained(out_dir)
    return summary


# --- language ----------------------------------------------------------------------------------------


def build_tokenizer(words: list[str]) -> PreTrainedTokenizerFast:
    """A word-level tokenizer with BOS, EOS, padding and unknown, for the synthetic vocabulary."""
    specials = ["<unk>", "<s>", "</s>", "<pad>"]
    vocabulary = {w: i for i, w in enumerate([*specials, *sorted(set(words))])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", vocabulary["<s>"])]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>"
    )


def _language(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Next-word prediction on scenes told in words: what is there, an expression, which one is meant."""
    stories = pool.stories()
    tokenizer = build_tokenizer([w for s in stories for w in s.split()] + list(".,;:?"))
    with forked_rng("language", config.seed):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.language_width,
                intermediate_size=3 * config.language_width,
                num_hidden_layers=config.language_depth,
                num_attention_heads=config.language_heads,
                max_position_embeddings=1024,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    encoded = [torch.tensor([*tokenizer.encode(s), tokenizer.eos_token_id]) for s in stories]

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(encoded), config.batch, replace=False)
        ids = nn.utils.rnn.pad_sequence([encoded[r] for r in rows], batch_first=True, padding_value=-100)
        out = model(input_ids=ids.clamp(min=0), labels=ids)
        return out.loss, {}

    summary = _optimise(
        "language",
        list(model.parameters()),
        config.language_steps,
        config.learning_rate,
        step_loss,
        config.seed,
    )
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return summary


# --- SAM ---------------------------------------------------------------------------------------------

_POINTS = 4


def _sam(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Point prompts; the three outputs learn sub-part, part and whole, the single output the whole.

    A point on a detail asks for the detail, then the object, then the object; a point elsewhere on an
    object asks for the object thrice; a point on the background for the background. The IoU head
    regresses the true IoU of each output, as SAM's does.
    """
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
    sam.train()
    pixels = torch.stack([sam_input(pool.image(i), sam) for i in range(len(pool))])

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        rows = rng.choice(len(pool), config.batch, replace=False)
        points, targets = zip(*(pool.points(int(r), _POINTS, rng) for r in rows), strict=True)
        coordinates = torch.from_numpy(np.concatenate(points)).float()[:, None]
        target = torch.from_numpy(np.concatenate(targets)).float()
        embeddings = sam.image_encoder(pixels[rows]).repeat_interleave(_POINTS, 0)
        ones = torch.ones(len(coordinates), 1)
        sparse, _dense = sam.prompt_encoder(points=(coordinates, ones), boxes=None, masks=None)
        logits, quality = decode_masks(sam, embeddings, sparse, outputs="all")
        # The decoder's own resolution: soft targets there cost a quarter of the full image's pixels.
        wanted = F.adaptive_avg_pool2d(target, logits.shape[-2:])[:, [2, 0, 1, 2]].flatten(0, 1)
        logits = logits.flatten(0, 1)
        with torch.no_grad():
            guess, truth = logits > 0, wanted > 0.5
            iou = (guess & truth).flatten(1).sum(1) / (guess | truth).flatten(1).sum(1).clamp(min=1)
        loss = 4 * bce_loss(logits, wanted) + dice_loss(logits, wanted) + F.mse_loss(quality.flatten(), iou)
        return loss, {"iou": iou.mean().item()}

    summary = _optimise(
        "sam", list(sam.parameters()), config.sam_steps, config.learning_rate, step_loss, config.seed
    )
    save_tiny_sam(sam, size, out_dir)
    return summary
