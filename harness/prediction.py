"""Predictions of a run: one row an expression, with the mask as RLE at the photograph's resolution.

Where a run has several processes each predicts some batches of images, and the first writes them all.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import chain

import numpy as np
import pandas as pd
import torch
from pycocotools import mask as coco_mask
from torch import Tensor
from tqdm import tqdm

from harness.config import ProtocolConfig, RunConfig
from harness.files import atomic_path
from harness.models.generation import generate_prompts
from harness.models.ris import RISModel
from harness.models.sam import sam_frame, upscale_logits
from harness.parallel import Workers
from harness.planning.plan import Plan
from harness.plugins.controls import load_control
from harness.projector import ImageFeatures
from harness.scoring.scored import evaluated, select
from harness.seeds import deterministic
from harness.training.assembly import RunData, finished_model

__all__ = ["encode_mask", "image_batches", "predict_batch", "predict_masks", "predict_stage"]

_IMAGES_PER_BATCH = 16


def encode_mask(mask: np.ndarray) -> str:
    """COCO compressed counts of a bool or uint8 ``[H, W]``."""
    return coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode()


def image_batches(rows: pd.DataFrame, size: int = _IMAGES_PER_BATCH) -> Iterator[list[pd.DataFrame]]:
    """Expressions grouped by image, a few images at a time: an image is encoded once for all of them."""
    groups = [g for _, g in rows.groupby(["dataset", "split", "image_id"], sort=False)]
    for start in range(0, len(groups), size):
        yield groups[start : start + size]


@torch.no_grad()
def predict_masks(
    model: RISModel,
    image: ImageFeatures,
    sam_embeddings: Tensor,
    expressions: Sequence[Sequence[str]],
    sizes: Sequence[tuple[int, int]],
    protocol: ProtocolConfig,
) -> tuple[list[np.ndarray], list[int], list[bool]]:
    """Masks of the expressions of ``b`` images.

    Args:
        model: in eval mode.
        image: what the projector sees of the images.
        sam_embeddings: ``[b, C, h, w]``.
        expressions: the expressions of each image.
        sizes: ``(height, width)`` of each image.
        protocol: how answers are decoded, and where a mask begins.

    Returns:
        bool ``[m_i, height, width]`` of each image; of each expression the visual tokens that were read for
        it, and whether ``[SEG]`` was said.
    """
    counts = [len(group) for group in expressions]
    if protocol.decode == "generate":
        own, texts, _ = model.asked(image, expressions)
        visual = model.visual_tokens(own)
        prompts, emitted = generate_prompts(model, visual, texts, protocol.max_new_tokens)
        owner = torch.arange(len(sizes)).repeat_interleave(torch.tensor(counts))
        logits = model.mask_logits(prompts, sam_embeddings[owner.to(sam_embeddings.device)])
    else:
        logits, _, visual, _ = model(image, expressions, sam_embeddings)
        emitted = torch.ones(len(logits), dtype=torch.bool)
    if not bool(torch.isfinite(logits).all()):  # beneath any threshold: they would pass for empty masks
        raise ValueError("mask logits are not finite; look at the run's weights, and at training.dtype")
    side = model.sam.image_encoder.img_size
    masks = []
    for part, said, (height, width) in zip(logits.split(counts), emitted.split(counts), sizes, strict=True):
        frame = sam_frame(height, width, side)
        full = upscale_logits(part[:, None].float(), side, frame, height, width)[:, 0]
        # A model that does not say [SEG] shows nothing: its empty mask leaves the target in the union.
        masks.append(((full > protocol.threshold) & said[:, None, None].to(full.device)).cpu().numpy())
    tokens = visual.lengths.cpu()
    if not model.reads_expression:
        tokens = tokens.repeat_interleave(torch.tensor(counts))
    return masks, tokens.tolist(), emitted.tolist()


def predict_batch(
    model: RISModel,
    data: RunData,
    groups: list[pd.DataFrame],
    protocol: ProtocolConfig,
    read_instead: Mapping[int, int] | None = None,
) -> tuple[list[str], list[int], list[bool]]:
    """RLE counts, visual tokens and whether ``[SEG]`` was said, of every expression of a few images.

    Args:
        model: in eval mode.
        data: of the run.
        groups: the expressions of each image.
        protocol: how answers are decoded.
        read_instead: images whose visual tokens are read in place of an image's own.
    """
    device = next(model.parameters()).device
    image_ids = [int(g["image_id"].iloc[0]) for g in groups]
    read = [(read_instead or {}).get(i, i) for i in image_ids]
    masks, tokens, emitted = predict_masks(
        model,
        data.features(read, device),
        data.sam_embeddings(image_ids, device),
        [g["sentence"].tolist() for g in groups],
        [data.size(image_id) for image_id in image_ids],
        protocol,
    )
    return [encode_mask(mask) for part in masks for mask in part], tokens, emitted


def predict_stage(plan: Plan, run: RunConfig) -> None:
    """Predict every evaluated expression of a run and write ``predictions/<id>.parquet``.

    Args:
        plan: the study.
        run: a trained run, or a control that acts on one or on superpixels.
    """
    deterministic(run.training.torch_threads)
    base = plan.base_run(run)
    data = RunData(plan, base)
    rows = select(evaluated(data.expressions, run.splits), run.protocol).reset_index(drop=True)
    control = load_control(run.source, run.config) if run.acts_on != "training" else None
    if control is not None:
        rows = control.rewrite(rows, run.seed)
    if run.acts_on == "superpixels":
        counts, tokens = _from_superpixels(control, data, rows, run)
        _write(plan, run, data, rows, counts, tokens, [True] * len(rows))
        return
    workers = Workers()
    model = finished_model(plan, base, data.vision_width, workers.device)
    read_instead: Mapping[int, int] = {}
    if control is not None:
        control.adjust(model.projector)
        read_instead = control.read_instead(rows["image_id"].to_numpy(), run.seed)
    # Batches are the same however many processes share them, and so is every mask.
    own = workers.own(list(image_batches(rows)))
    found = []
    with tqdm(
        total=sum(len(groups) for _, groups in own),
        desc=f"predict {run.id}",
        unit="image",
        mininterval=5,
        disable=not workers.is_main,
    ) as bar:
        for place, groups in own:
            found.append((place, predict_batch(model, data, groups, run.protocol, read_instead)))
            bar.update(len(groups))
    batches = [batch for _, batch in sorted(workers.gather(found), key=lambda item: item[0])]
    if workers.is_main:
        counts, tokens, emitted = (list(chain.from_iterable(part)) for part in zip(*batches, strict=True))
        _write(plan, run, data, rows, counts, tokens, emitted)
    workers.wait()


def _from_superpixels(
    control: object, data: RunData, rows: pd.DataFrame, run: RunConfig
) -> tuple[list[str], list[int]]:
    counts: list[str] = []
    tokens: list[int] = []
    assert data.superpixels is not None
    for _, group in tqdm(
        rows.groupby("image_id", sort=False), desc=f"predict {run.id}", unit="image", mininterval=5
    ):
        image_id = int(group["image_id"].iloc[0])
        masks = data.superpixels.masks(image_id).masks
        for dataset, ann_id in group[["dataset", "ann_id"]].itertuples(index=False):
            chosen = control.choose(masks, data.mask(dataset, ann_id))  # type: ignore[attr-defined]
            counts.append(encode_mask(chosen))
            tokens.append(len(masks))
    order = np.concatenate([g.index.to_numpy() for _, g in rows.groupby("image_id", sort=False)])
    back = np.argsort(order)
    return [counts[i] for i in back], [tokens[i] for i in back]


def _write(
    plan: Plan,
    run: RunConfig,
    data: RunData,
    rows: pd.DataFrame,
    counts: list[str],
    tokens: list[int],
    emitted: list[bool],
) -> None:
    sizes = np.array([data.size(i) for i in rows["image_id"]])
    table = pd.DataFrame(
        {
            "study": run.study,
            "projector": run.projector,
            "variant": run.variant,
            "budget": str(run.budget) if run.budget else "auto",
            "seed": run.seed,
            "dataset": rows["dataset"],
            "split": rows["split"],
            "protocol": run.protocol.label,
            "ref_id": rows["ref_id"],
            "sent_id": rows["sent_id"],
            "image_id": rows["image_id"],
            "visual_tokens": tokens,
            "seg_emitted": emitted,
            "status": "ok",
            "rle": counts,
            "height": sizes[:, 0],
            "width": sizes[:, 1],
        }
    )
    target = plan.study_dir / "predictions" / f"{run.id}.parquet"
    with atomic_path(target) as aside:
        table.to_parquet(aside, index=False)
