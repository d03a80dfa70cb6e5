"""The learning-rate search: trials of one row compared on held-out images of the train split."""

from __future__ import annotations

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from harness.config import RunConfig
from harness.files import write_json
from harness.planning.plan import Plan
from harness.prediction import image_batches, predict_batch
from harness.scoring.rle import overlap, without
from harness.training.assembly import RunData, finished_model
from harness.training.diverged import is_diverged
from harness.training.held_out import held_out

__all__ = ["held_out_giou", "tune_stage"]


def held_out_giou(plan: Plan, trial: RunConfig) -> tuple[float, int]:
    """Mean IoU (0 to 1) of a trained trial over its held-out expressions, and how many there are."""
    data = RunData(plan, trial)
    rows = held_out(data.expressions, trial.held_out_images)
    rows = rows.sort_values(["dataset", "image_id", "ref_id", "sent_id"], ignore_index=True)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = finished_model(plan, trial, data.vision_width, device)
    scores: list[float] = []
    total = rows.groupby(["dataset", "image_id"]).ngroups
    with tqdm(total=total, desc=f"held out {trial.id}", unit="image", mininterval=5) as bar:
        for groups in image_batches(rows):
            counts, _, _ = predict_batch(model, data, groups, trial.protocol)
            scores += _ious(data, pd.concat(groups), counts)
            bar.update(len(groups))
    return float(np.mean(scores)), len(rows)


def _ious(data: RunData, rows: pd.DataFrame, counts: list[str]) -> list[float]:
    """As scores are taken: pixels that the dataset does not score leave the prediction first."""
    out = []
    truths = data.annotations.loc[pd.MultiIndex.from_frame(rows[["dataset", "ann_id"]])]
    ignored = truths.get("rle_ignored", pd.Series("", truths.index)).fillna("").tolist()
    columns = [truths[name].tolist() for name in ("rle", "height", "width")]
    for row, ours, unscored, truth, height, width in zip(
        rows["sent_id"], counts, ignored, *columns, strict=True
    ):
        name = f"train expression {row}"
        ours = without(ours, unscored, height, width, name) if unscored else ours
        both, target, predicted = overlap(ours, truth, height, width, name)
        union = target + predicted - both
        out.append(both / union if union else 1.0)
    return out


def tune_stage(plan: Plan, row: str) -> None:
    """Choose the learning rate of a row and write ``tuning/<row>.json``.

    Of equal scores the lower rate wins. A trial that diverged has no gIoU and is never chosen.

    Args:
        plan: the study.
        row: ``projector.variant.budget``.

    Raises:
        ValueError: all trials diverged.
    """
    trials = sorted(plan.trials[row].values(), key=lambda trial: trial.training.learning_rate)
    torch.set_num_threads(trials[0].training.torch_threads)
    rates = [trial.training.learning_rate for trial in trials]
    diverged = [is_diverged(plan.weights(trial.id)) for trial in trials]
    if all(diverged):
        tried = ", ".join(f"{rate:g}" for rate in rates)
        raise ValueError(
            f"{row}: every trial of the learning-rate search diverged (at {tried}); "
            "take smaller tuning.factors"
        )
    found = {
        rate: held_out_giou(plan, trial)
        for rate, trial, lost in zip(rates, trials, diverged, strict=True)
        if not lost
    }
    best = max(found, key=lambda rate: found[rate][0])
    write_json(
        plan.choice_file(row),
        {
            "learning_rate": best,
            "learning_rates": rates,
            "giou": [round(found[rate][0], 6) if rate in found else None for rate in rates],
            "n_expressions": found[best][1],
            "n_images": trials[0].held_out_images,
            "stage1_steps": trials[0].training.stage1_steps,
            "stage2_steps": trials[0].training.stage2_steps,
        },
    )
