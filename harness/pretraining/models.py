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
from harness.models.captions import PLACES
from harness.models.vision import VisionEncoder
from harness.pretraining.grounding import pretrain_grounding
from harness.pretraining.optimise import optimise, split_matrices
from harness.pretraining.pool import Pool
from harness.pretraining.sam import pretrain_sam
from harness.pretraining.telling import asked, naming, story_slots, told_states
from harness.seeds import deterministic, forked_rng

__all__ = ["pretrain"]


def pretrain(
    part: str, run: RunConfig, pool_dir: Path, out_dir: Path, upstream: dict[str, Path] | None = None
) -> None:
    """Pretrain one tiny model and write it, with ``done.json`` last.

    Args:
        part: ``vision``, ``language``, ``sam``, or ``start``.
        run: supplies sizes, steps and the patch grid.
        pool_dir: the pretraining pool of a synthetic data set.
        out_dir: where the model goes.
        upstream: for ``start`` the folders of ``language`` and ``sam``.
    """
    config = run.models.pretrain
    if config is None:
        raise ValueError(f"models: {part} is to be pretrained, but there is no 'pretrain' block")
    deterministic(config.torch_threads)
    out_dir.mkdir(parents=True, exist_ok=True)
    pool = Pool(pool_dir)
    if part == "start":
        folders = upstream or {}
        summary = pretrain_grounding(run, config, pool, folders["language"], folders["sam"], out_dir)
    else:
        train: Callable[[RunConfig, PretrainConfig, Pool, Path], dict[str, float]]
        train = {"vision": _vision, "language": _language, "sam": pretrain_sam}[part]
        summary = train(run, config, pool, out_dir)
    write_json(out_dir / "done.json", {"part": part, **summary})


# --- vision ------------------------------------------------------------------------------------------

_VISION = {
    "dinov2": (Dinov2Config, Dinov2Model),
    "clip": (CLIPVisionConfig, CLIPVisionModel),
    "siglip": (SiglipVisionConfig, SiglipVisionModel),
}


def _vision(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Dense attribute classification: each patch names what covers most of it.

    Targets are the category, colour, pattern and size of the object that covers most of a patch
    (background where none covers a third), and the patch's own place, which the features of real encoders
    tell too; from linear heads that are thrown away.
    """
    config_class, model_class = _VISION[run.models.vision.kind]
    shape = {
        "hidden_size": config.vision_width,
        "num_hidden_layers": config.vision_depth,
        "num_attention_heads": config.vision_heads,
        "image_size": run.models.vision.image_size,
        "patch_size": run.models.vision.patch_size,
        "initializer_range": config.vision_width**-0.5,
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
        place = nn.Linear(config.vision_width, 2)
    encoder = VisionEncoder(model, run.models.vision)
    model.train().requires_grad_(True)
    pixels = torch.stack([encoder.preprocess(pool.image(i)) for i in range(len(pool))])
    labels = pool.patch_labels(run.models.vision.grid)
    targets = {k: torch.from_numpy(v) for k, v in labels.items()}
    rows, columns = run.models.vision.grid
    across = torch.arange(columns).repeat(rows) * 2 / columns - 1
    down = torch.arange(rows).repeat_interleave(columns) * 2 / rows - 1
    where = torch.stack([across, down], -1)

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        drawn = rng.choice(len(pool), config.batch, replace=False)
        state = model(pixel_values=pixels[drawn]).last_hidden_state[:, -len(where) :]
        loss, correct = F.mse_loss(place(state), where.expand(len(drawn), -1, -1)), []
        for key, head in heads.items():
            scores, target = head(state).flatten(0, 1), targets[key][drawn].flatten()
            # Background fills most patches; a class's weight keeps it from filling the loss too.
            weight = torch.where(target == 0, 0.2, 1.0)
            loss = loss + (F.cross_entropy(scores, target, reduction="none") * weight).sum() / weight.sum()
            seen = target > 0
            correct.append((scores.argmax(-1)[seen] == target[seen]).float().mean().item())
        return loss, {"accuracy": float(np.mean(correct))}

    matrices, others = split_matrices(model.encoder, model, heads, place)
    summary = optimise(
        "vision", others, config.vision_steps, config.learning_rate, step_loss, config.seed, matrices
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
    """Referring in words: what is there, an expression, and then every word of the object meant at once.

    Scenes are told as :func:`harness.pretraining.telling.told_states` says. Where the text ends the model's
    own output head names the looks and the place of the object meant, all in one step
    (:mod:`harness.models.captions`), so that one hidden state holds all that ``[SEG]`` must tell. It is
    what an LLM knows of referring before it sees an image.
    """
    stories = pool.stories()
    places = {f"{axis}{i}" for axis in ("x", "y") for i in range(PLACES)}
    words = {w for s in stories for w in (*s.expression.split(), *s.looks)} | places
    tokenizer = build_tokenizer([*words, *".,;:?"])
    with forked_rng("language", config.seed):
        model = LlamaForCausalLM(
            LlamaConfig(
                vocab_size=len(tokenizer),
                hidden_size=config.language_width,
                intermediate_size=3 * config.language_width,
                num_hidden_layers=config.language_depth,
                num_attention_heads=config.language_heads,
                # The default of 0.02 suits widths of thousands; at this width attention would start blind.
                initializer_range=config.language_width**-0.5,
                max_position_embeddings=1024,
                # Slow rotations: what a word means should match over any distance.
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    with torch.no_grad():
        for layer in model.model.layers:
            # A word attends to its like from the first step on, which is what referring needs.
            layer.self_attn.k_proj.weight.copy_(layer.self_attn.q_proj.weight)
    vocabulary: dict[str, int] = tokenizer.get_vocab()
    slots = story_slots(stories, vocabulary)

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = rng.choice(len(stories), config.language_batch, replace=False)
        told = [asked(stories[i], rng) for i in chosen]
        return naming(model, told_states(model, vocabulary, told, rng), told, slots)

    matrices, others = split_matrices(model.model.layers, model)
    summary = optimise(
        "language", others, config.language_steps, config.learning_rate, step_loss, config.seed, matrices
    )
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return summary
