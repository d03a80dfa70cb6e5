"""A made-up study on disk: known effects, real file formats, no model."""

import json

import numpy as np
import pandas as pd
from pycocotools import mask as coco_mask

from harness.scoring.metrics import SCORE_COLUMNS

ROWS = {
    # (projector, variant, budget): (mean IoU, tokens or None where they follow the objects)
    ("dense", "base", "auto"): (0.66, 144),
    ("pool", "base", "36"): (0.60, 36),
    ("pool", "base", "9"): (0.48, 9),
    ("abstractor", "base", "36"): (0.57, 36),
    ("segments", "base", "auto"): (0.65, None),
    ("segments", "no_position", "auto"): (0.50, None),
    ("coin_flip", "base", "36"): (0.35, 36),
}

SPLITS = [("toy", "val"), ("toy", "testA"), ("toy+", "val"), ("toyg", "test")]

CONTROLS = ["coin_flip"]
MADE_BY = {"command": "make run", "commit": "0123456789", "uncommitted_changes": False, "device": "a machine"}


def make_study(folder, images=24, per_image=3, seeds=(0,), rows=None, splits=SPLITS, photographs=False):
    """Write prepared tables, scores, efficiency, logs and config; returns the paths by name."""
    rng = np.random.default_rng(11)
    prepared = folder / "shared" / "prepared"
    study = folder / "default"
    for sub in (prepared, study / "scores", study / "efficiency", study / "runs"):
        sub.mkdir(parents=True)
    square = np.zeros((96, 96), np.uint8, order="F")
    square[20:60, 20:60] = 1
    rle = coco_mask.encode(square)["counts"].decode()
    expressions, annotations, objects = [], [], {}
    for s, (dataset, split) in enumerate(splits):
        for i in range(images):
            image = 1000 * s + i
            objects[image] = int(rng.integers(3, 11))
            rest = (image, "cup", 1600, rle, 96, 96)
            annotations += [(dataset, image * 100 + k, *rest) for k in range(objects[image])]
            for k in range(per_image):
                phenomenon = ("location", "attribute", "relation")[k % 3]
                words = (
                    dataset,
                    split,
                    image,
                    image * 10 + k,
                    image * 100 + k,
                    image,
                    f"cup {k}",
                    phenomenon,
                )
                expressions.append(words)
    columns = ["dataset", "split", "ref_id", "sent_id", "ann_id", "image_id", "sentence", "phenomenon"]
    expressions = pd.DataFrame(expressions, columns=columns)
    columns = ["dataset", "ann_id", "image_id", "category", "area", "rle", "height", "width"]
    annotations = pd.DataFrame(annotations, columns=columns)
    expressions.to_parquet(prepared / "expressions.parquet")
    annotations.to_parquet(prepared / "annotations.parquet")

    difficulty = dict(zip(objects, 0.12 * rng.standard_normal(len(objects)), strict=True))
    score_paths, log_paths, runs = [], [], []
    for (projector, variant, budget), (level, tokens) in (rows or ROWS).items():
        for seed in seeds:
            run = f"{projector}.{variant}.{budget}.s{seed}"
            n = len(expressions)
            iou = level + 0.08 * rng.standard_normal(n) + expressions["image_id"].map(difficulty).to_numpy()
            inter = np.round(np.clip(iou, 0, 1) * 1600).astype(int)
            counts = expressions["image_id"].map(objects).to_numpy() + 2
            frame = expressions[["dataset", "split", "ref_id", "sent_id", "image_id"]].assign(
                study="default",
                projector=projector,
                variant=variant,
                budget=budget,
                seed=seed,
                protocol="full",
                intersection=inter,
                union=1600,
                gt_area=1600,
                pred_area=inter,
                visual_tokens=counts if tokens is None else tokens,
                seg_emitted=True,
                status="ok",
            )
            score_paths.append(study / "scores" / f"{run}.parquet")
            frame[list(SCORE_COLUMNS)].to_parquet(score_paths[-1])
            (study / "runs" / run).mkdir()
            log_paths.append(study / "runs" / run / "log.jsonl")
            with log_paths[-1].open("w") as stream:
                for stage, steps, start in ((1, 400, 3.0), (2, 200, 1.6)):
                    for step in range(0, steps, 10):
                        loss = start * np.exp(-step / 150) + 1 - level + 0.05 * rng.standard_normal()
                        line = {"stage": stage, "step": step, "loss": loss, "ce": loss / 4}
                        line |= {"bce": loss / 4, "dice": loss / 2, "lr": 3e-4}
                        stream.write(json.dumps(line) + "\n")
            runs.append(
                {
                    "projector": projector,
                    "variant": variant,
                    "budget": None if budget == "auto" else int(budget),
                    "seed": seed,
                    "kind": "control" if projector in CONTROLS else "projector",
                    "data": {"kind": "refer" if photographs else "synthetic"},
                    "training": {"learning_rate": 3e-4, "betas": [0.9, 0.95]},
                }
            )
    config = {
        "study": {
            "study": "default",
            "title": "Projectors at equal budgets",
            "notes": ["Superpixels: made up.", "Encoders: none."],
            "effort": "quick",
            "reference_row": "dense",
            "bootstrap_resamples": 200,
        },
        "runs": runs,
    }
    (study / "config.json").write_text(json.dumps(config))
    efficiency = {"rows": [], "parameters": [], "relative": []}
    for k, (row, (_, tokens)) in enumerate((rows or ROWS).items()):
        head = dict(zip(("projector", "variant", "budget"), row, strict=True))
        for stage, base in (
            ("vision", 4.0),
            ("sam_encode", 5.0),
            ("project", 0.4 + 0.1 * k),
            ("prefill", 0.05),
        ):
            median = base * (tokens or 9) if stage == "prefill" else base
            for batch in (1, 8):
                timing = {
                    "stage": stage,
                    "case": "cold" if stage in ("vision", "sam_encode") else "cached",
                    "batch": batch,
                    "median_ms": median * batch**0.8,
                }
                shared = {"device": "cpu", "dtype": "float32", "attention": "sdpa"}
                efficiency["rows"].append({**head, **timing, "iqr_ms": 0.05, "flops": 1e9, **shared})
        if row[0] not in CONTROLS:
            efficiency["parameters"].append({**head, "parameters": 12345 * 10**k % 40_000_000})
        efficiency["relative"].append(
            {**head, "speedup_infer": 1 + 0.1 * k, "speedup_train": None if k == 6 else 1 + 0.2 * k}
        )
    efficiency_path = study / "efficiency" / "study.json"
    efficiency_path.write_text(json.dumps(efficiency))
    return {
        "root": folder,
        "study": study,
        "prepared": prepared,
        "scores": score_paths,
        "logs": log_paths,
        "efficiency": [efficiency_path],
        "config": config,
    }
