"""Two-stage training of a run, resumable at every checkpoint to the same weights.

What a step sees depends on (seed, stage, step) alone, never on what was drawn before: the same order
for every projector, and nothing to restore but weights and optimiser when a killed job starts again.
"""

from __future__ import annotations

import json
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from tqdm import tqdm

from harness.config import RunConfig, TrainingConfig
from harness.files import atomic_path
from harness.models.losses import weighted_losses
from harness.models.ris import RISModel
from harness.parallel import Workers
from harness.planning.plan import Plan
from harness.planning.triggers import checkpoint_dir
from harness.running.started import code_state
from harness.seeds import deterministic, forked_rng, numpy_generator, torch_generator
from harness.tensors import load_tensors, save_tensors
from harness.training.assembly import RunData, build_model, load_stage
from harness.training.held_out import without_held_out

__all__ = ["Sampler", "train_stage"]

_Named = list[tuple[str, torch.nn.Parameter]]
_LOGGED = ("loss", "ce", "caption", "bce", "dice", "extra", "visual_tokens")


class Sampler:
    """Draws each step's images and expressions.

    Datasets have equal probability per image, as in LISA's and GLaMM's joint training on RefCOCO,
    RefCOCO+ and RefCOCOg; within a dataset, images are uniform.
    """

    def __init__(self, expressions: pd.DataFrame, config: TrainingConfig, seed: int):
        """From the prepared expressions; only ``train`` is used.

        Raises:
            ValueError: there is no train split.
        """
        train = expressions[expressions["split"] == "train"].reset_index(drop=True)
        if train.empty:
            raise ValueError("the prepared data has no train split; see `splits` of the data part")
        self.train, self.config, self.seed = train, config, seed
        self._groups: list[list[np.ndarray]] = []
        for _, frame in train.groupby("dataset", sort=True):
            self._groups.append([g.index.to_numpy() for _, g in frame.groupby("image_id", sort=True)])

    def rows(self, stage: int, step: int) -> list[pd.DataFrame]:
        """The expressions of each image of a step."""
        rng = numpy_generator("order", self.seed, stage, step)
        out = []
        for _ in range(self.config.images_per_step):
            images = self._groups[rng.integers(len(self._groups))]
            candidates = images[rng.integers(len(images))]
            count = min(self.config.expressions_per_image, len(candidates))
            # by position, which the reset index equals: several times faster than by label
            out.append(self.train.take(rng.choice(candidates, count, replace=False)))
        return out


def learning_rate(step: int, steps: int, config: TrainingConfig) -> float:
    """Linear warm-up, then linear to zero (GLaMM's WarmupDecayLR); ``step`` counts from 0."""
    warmup = min(config.warmup_steps, max(1, steps // 4))
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    return config.learning_rate * (steps - step) / max(1, steps - warmup)


def training_step(
    model: RISModel,
    data: RunData,
    groups: list[pd.DataFrame],
    run: RunConfig,
    stage: int,
    step: int,
    workers: Workers | None = None,
) -> dict[str, float]:
    """This process's forward and backward passes of one step, gradients left in place.

    Losses are means over expressions, so each pass counts by its share of the step's. The cross-entropy is
    a mean over answer tokens: the same where all answers of a protocol are equally long.

    Returns:
        The step's loss and its parts, over all processes.
    """
    each = run.training.images_per_forward or len(groups)
    passes = [groups[start : start + each] for start in range(0, len(groups), each)]
    expressions = sum(len(g) for g in groups)
    parts = dict.fromkeys(_LOGGED, 0.0)
    for index, some in workers.own(passes) if workers else list(enumerate(passes)):
        share, of_images = sum(len(g) for g in some) / expressions, len(some) / len(groups)
        values = _forward_backward(model, data, some, run, stage, step, index, share, of_images)
        for name, value in values.items():
            parts[name] += value
    parts = workers.sum_values(parts) if workers else parts
    if not math.isfinite(parts["loss"]) and (stage, step) == (1, 0):
        raise ValueError(
            f"{run.id}: the loss is {parts['loss']} in the first step, before anything was learnt; look at "
            "the projector's forward, or set training.dtype: float32"
        )
    if not math.isfinite(parts["loss"]):
        raise FloatingPointError(f"{run.id}: the loss is {parts['loss']} at stage {stage}, step {step}")
    return parts


def _forward_backward(
    model: RISModel,
    data: RunData,
    groups: list[pd.DataFrame],
    run: RunConfig,
    stage: int,
    step: int,
    index: int,
    share: float,
    of_images: float,
) -> dict[str, float]:
    """One pass over some images, a ``share`` of the step's expressions: its part of what is logged."""
    # What is drawn hangs on the pass, never on the process that makes it.
    draw = (run.seed, stage, step, *([index] if index else []))
    device = next(model.parameters()).device
    image_ids = [int(g["image_id"].iloc[0]) for g in groups]
    features = data.features(image_ids, device)
    expressions = [g["sentence"].tolist() for g in groups]
    config, captions = run.training, None
    if config.caption_weight:
        captioner = data.captions(model.template.tokenizer)
        captions = captioner.draw(groups, config.captioned_places, run.seed, stage, step)
    masked = stage == 2 or step >= config.caption_steps
    if masked:
        sam_embeddings = data.sam_embeddings(image_ids, device)
        target, valid = data.targets(pd.concat(groups), model.sam.image_encoder.img_size)
        target, valid = target.to(device), valid.to(device) if valid is not None else None
    budgets = model.projector.training_budgets(step, torch_generator("budget", run.seed, stage, step))
    parts = dict.fromkeys(_LOGGED, 0.0)
    for budget in budgets:
        options = {"budget": budget, "generator": torch_generator("draw", *draw)}
        with forked_rng("dropout", *draw):
            if masked:
                out = model(features, expressions, sam_embeddings, captions, **options)
                losses = weighted_losses(out.logits, out.ce, out.caption, target, valid, config)
                total, visual = losses.total, out.visual
                values = {name: getattr(losses, name) for name in ("ce", "caption", "bce", "dice")}
            else:
                assert captions is not None
                caption, visual = model.caption(features, expressions, captions, **options)
                total, values = config.caption_weight * caption, {"caption": caption}
        objective, values = share * total, {name: share * value for name, value in values.items()}
        if visual.extra_loss is not None:  # a mean over images
            values["extra"] = of_images * visual.extra_loss
            objective = objective + values["extra"]
        (objective / len(budgets)).backward()
        values |= {"loss": objective, "visual_tokens": of_images * visual.lengths.float().mean()}
        for name, value in values.items():
            parts[name] += value.item() / len(budgets)
    return parts


def _first_states(model: RISModel, data: RunData, sampler: Sampler, steps: int = 4) -> Tensor:
    """``[m, H]`` untrained ``[SEG]`` states of the expressions of a few steps."""
    device = next(model.parameters()).device
    states = []
    for step in range(steps):
        groups = sampler.rows(1, step)
        each = sampler.config.images_per_forward or len(groups)
        for start in range(0, len(groups), each):
            some = groups[start : start + each]
            image = data.features([int(g["image_id"].iloc[0]) for g in some], device)
            _, packed, hidden = model.read(image, [g["sentence"].tolist() for g in some])
            states.append(model.seg_states(hidden, packed))
    return torch.cat(states).float()


class _Checkpoint:
    """Weights, optimiser state and step, in one safetensors file outside the declared outputs."""

    def __init__(self, folder: Path, stage: int):
        self.path = folder / f"stage{stage}.checkpoint.safetensors"

    def save(self, model: RISModel, optimizer: torch.optim.AdamW, named: _Named, step: int) -> None:
        tensors = {f"model/{k}": v for k, v in model.trained_state().items()}
        for name, parameter in named:
            for key, value in optimizer.state.get(parameter, {}).items():
                tensors[f"{key}/{name}"] = value
        tensors["step"] = torch.tensor(step)
        save_tensors(self.path, tensors)

    def load(self, model: RISModel, optimizer: torch.optim.AdamW, named: _Named) -> int:
        """The step to go on from; 0 where there is no checkpoint.

        A checkpoint that cannot be read is an error, never silently started over.
        """
        if not self.path.exists():
            return 0
        tensors = load_tensors(self.path, "delete it to train this stage anew")
        step = int(tensors.pop("step"))
        state = {k.removeprefix("model/"): v for k, v in tensors.items() if k.startswith("model/")}
        model.load_trained(state, str(self.path))
        for name, parameter in named:
            if f"step/{name}" not in tensors:  # has not learnt yet
                continue
            optimizer.state[parameter] = {
                "step": tensors[f"step/{name}"].to(parameter.device),
                "exp_avg": tensors[f"exp_avg/{name}"].to(parameter.device),
                "exp_avg_sq": tensors[f"exp_avg_sq/{name}"].to(parameter.device),
            }
        return step


class _Log:
    """``log.jsonl``: one line a logged step; lines past the resumed step are dropped on resume."""

    def __init__(self, path: Path, stage: int, resumed: int):
        self.path, self.stage = path, stage
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = []
        if path.exists():
            lines = path.read_text().splitlines()
            for number, line in enumerate(lines, 1):
                try:
                    value = json.loads(line)
                except json.JSONDecodeError as error:
                    if number == len(lines):  # cut off when the job was killed or the disk was full
                        break
                    raise ValueError(
                        f"{path}, line {number} cannot be read ({error}); delete that line to go on"
                    ) from error
                earlier = value["stage"] < stage
                if earlier or (value["stage"] == stage and value["step"] <= resumed and resumed > 0):
                    kept.append(line)
        with atomic_path(path) as aside:
            aside.write_text("".join(line + "\n" for line in kept))
        # The code that trained: tables may be told from it at another commit.
        self.write({"step": resumed, "event": "resumed" if resumed else "started", **code_state()})

    def write(self, values: dict[str, object]) -> None:
        with self.path.open("a") as stream:
            stream.write(json.dumps({"stage": self.stage, **values}) + "\n")


def train_stage(plan: Plan, run: RunConfig, stage: int) -> None:
    """Train one stage of a run and write ``runs/<id>/stage<stage>.safetensors``.

    Args:
        plan: the study.
        run: the run.
        stage: 1 (language model frozen) or 2 (LoRA, and what the projector held back).
    """
    config = run.training
    deterministic(config.torch_threads)
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    workers = Workers()
    data = RunData(plan, run)
    model = build_model(plan, run, data.vision_width).to(workers.device)
    run_dir = plan.run_dir(run.id)
    if stage == 2:
        load_stage(model, run_dir / "stage1.safetensors")
    aligning = stage == 1 and config.caption_steps > 0
    # What learns at any step of the stage: while aligning, of the projector more than afterwards.
    learning = dict(model.set_stage(stage, aligning=True)) if aligning else {}
    named = list((learning | dict(model.set_stage(stage))).items())
    learnt = [p for _, p in named]
    spared = {id(p) for p in model.partly_frozen(stage)}
    groups: list[dict[str, Any]] = [
        {"params": [p for p in learnt if id(p) not in spared]},
        {"params": [p for p in learnt if id(p) in spared], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(
        groups,
        lr=config.learning_rate,
        betas=config.betas,
        weight_decay=config.weight_decay,
        fused=True,
    )
    checkpoint = _Checkpoint(checkpoint_dir(plan, run), stage)
    first = checkpoint.load(model, optimizer, named)
    sampler = Sampler(without_held_out(data.expressions, run.held_out_images), config, run.seed)
    if stage == 1 and first == 0 and run.models.start is None:
        with torch.no_grad():
            model.start_seg_head(_first_states(model, data, sampler))
    workers.share_out(model.trained_state().values())
    if config.strategy == "fsdp":
        workers.shard_frozen(model.language)
    log = _Log(run_dir / "log.jsonl", stage, first) if workers.is_main else None
    steps = config.stage1_steps if stage == 1 else config.stage2_steps
    model.start_learning(checkpointing=config.gradient_checkpointing)
    named_bar = {"desc": f"{run.id} stage {stage}", "mininterval": 5, "disable": not workers.is_main}
    bar = tqdm(range(first, steps), initial=first, total=steps, **named_bar)
    for step in bar:
        if aligning and step in (first, config.caption_steps):
            model.set_stage(stage, aligning=step < config.caption_steps)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps, config)
        optimizer.zero_grad(set_to_none=True)
        parts = training_step(model, data, sampler.rows(stage, step), run, stage, step, workers)
        workers.sum_gradients(learnt)
        model.mask_frozen_rows(stage)
        norm = float(torch.nn.utils.clip_grad_norm_(learnt, config.grad_clip))
        if not math.isfinite(norm):  # the loss would show it a step later, and after the last step never
            raise FloatingPointError(f"{run.id}: the gradient is {norm} at stage {stage}, step {step}")
        optimizer.step()
        done = step + 1
        if log is None:
            continue
        if done % config.log_every == 0 or done == steps:
            rate = optimizer.param_groups[0]["lr"]
            log.write({"step": done, **_rounded(parts), "lr": rate, "grad_norm": round(norm, 5)})
            bar.set_postfix(loss=f"{parts['loss']:.3f}", refresh=False)
        if done % config.checkpoint_every == 0 and done < steps:
            checkpoint.save(model, optimizer, named, done)
    if log is not None:
        _finish(plan, run, stage, model, checkpoint)
    workers.wait()


def _finish(plan: Plan, run: RunConfig, stage: int, model: RISModel, checkpoint: _Checkpoint) -> None:
    save_tensors(plan.weights(run.id, stage), model.trained_state())
    checkpoint.path.unlink(missing_ok=True)
    if stage == 2:
        shutil.rmtree(checkpoint_dir(plan, run), ignore_errors=True)


def _rounded(parts: dict[str, float]) -> dict[str, float]:
    """For the log; a loss of the projector's own only where there is one."""
    return {k: round(v, 6) for k, v in parts.items() if v or k != "extra"}
