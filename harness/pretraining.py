"""Pretrains the tiny vision encoder, language model and SAM on a pool of images of their own.

So that stage 1 starts, as in the paper, from frozen encoders that see something. The pool is disjoint
from every split. Each model is the real class at a small size, saved in the real format; nothing of
this module is used where real weights are at hand.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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
from harness.models.vision import VisionEncoder
from harness.optimise import optimise
from harness.pool import Pool, Story, place_words
from harness.sam_pretraining import pretrain_sam
from harness.seeds import forked_rng

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
    train = {"vision": _vision, "language": _language, "sam": pretrain_sam}[part]
    summary = train(run, config, Pool(pool_dir), out_dir)
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
    (background where none covers a third), from linear heads that are thrown away.
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
    summary = optimise(
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


def _pieces(story: Story, rng: np.random.Generator) -> list[tuple[str, ...]]:
    """The scene as positions of the prefix, in any order, each the words of one piece of an object.

    An object is told in one piece, as superpixels tell it, or in several from places within its box, as
    patches do; so no kind of visual token is the only one that the language model has met.
    """
    pieces = []
    for thing in story.things:
        count = 1 if rng.random() < 0.5 else int(rng.integers(2, 5))
        spread = 0.0 if count == 1 else 0.5
        for dx, dy in rng.uniform(-spread, spread, (count, 2)):
            pieces.append(
                (*thing.looks, *place_words(thing.x + dx * thing.width, thing.y + dy * thing.height))
            )
    return [pieces[i] for i in rng.permutation(len(pieces))]


def _language(run: RunConfig, config: PretrainConfig, pool: Pool, out_dir: Path) -> dict[str, float]:
    """Next-word prediction on scenes told in words: what is there, an expression, the object meant.

    Each piece of an object is one position, the mean of its words' embeddings; the words that answer say
    what the object looks like and where it is. What an LLM knows of referring before it sees an image.
    A blank stands before the answer, the mean of all embeddings, which is what ``[SEG]`` starts from.
    """
    stories = pool.stories()
    words = {w for s in stories for w in (*s.expression.split(), *s.answer)}
    words |= {w for i in range(12) for w in place_words((i + 0.5) / 12, (i + 0.5) / 12)}
    words |= {w for s in stories for t in s.things for w in t.looks}
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
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
    index = {w: tokenizer.convert_tokens_to_ids(w) for w in (*words, ".")}
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    embed: Any = model.get_input_embeddings()

    def step_loss(_: int, rng: np.random.Generator) -> tuple[Tensor, dict[str, float]]:
        chosen = [stories[i] for i in rng.choice(len(stories), 3 * config.batch, replace=False)]
        prefixes, questions, answers, labels = [], [], [], []
        for story in chosen:
            pieces = torch.tensor([[index[w] for w in piece] for piece in _pieces(story, rng)])
            question = [index[w] for w in (*story.expression.split(), ".")]
            answer = [index[w] for w in story.answer]
            prefixes.append(pieces)
            questions.append(torch.tensor(question))
            answers.append(torch.tensor([*answer, eos]))
            # Neither the scene nor the blank is to be guessed.
            labels.append(torch.tensor([-100] * (1 + len(pieces)) + [*question, -100, *answer, eos]))
        blank = embed.weight.mean(0, keepdim=True)
        rows = [
            torch.cat([embed(torch.tensor([bos])), embed(p).mean(1), embed(q), blank, embed(a)])
            for p, q, a in zip(prefixes, questions, answers, strict=True)
        ]
        inputs = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        wanted = nn.utils.rnn.pad_sequence(labels, batch_first=True, padding_value=-100)
        logits = model(inputs_embeds=inputs).logits[:, :-1]
        wanted = wanted[:, 1:]
        loss = F.cross_entropy(logits.flatten(0, 1), wanted.flatten(), ignore_index=-100)
        # The end of a text: ..., x, y, </s>
        ends = torch.tensor([len(told) - 2 for told in labels])
        order = torch.arange(len(chosen))
        with torch.no_grad():
            right = [logits[order, ends - k].argmax(-1) == wanted[order, ends - k] for k in (1, 2)]
        return loss, {"place": (right[0] & right[1]).float().mean().item()}

    parameters = list(model.parameters())
    summary = optimise(
        "language", parameters, config.language_steps, config.learning_rate, step_loss, config.seed
    )
    model.save_pretrained(out_dir)
    tokenizer.save_pretrained(out_dir)
    return summary
