"""The tiny SAM that the workflow pretrains, and scenes it has not seen, made where there are none."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from harness.plan import Plan
from harness.stages import StageName, run_stage
from harness.study import read_study

__all__ = ["tiny_sam_and_scenes"]


def tiny_sam_and_scenes(
    count: int, study: Path = Path("config/default.yaml")
) -> tuple[Path, list[Path], dict[str, Any]]:
    """A study's pretrained SAM, scenes of its held-out splits, and the options of its superpixels.

    What is missing is made as the workflow would make it, and where the workflow finds it: data in seconds,
    the SAM in minutes.

    Args:
        count: scenes; they are spread over the splits.
        study: with a pretrained SAM.

    Raises:
        ValueError: the study's SAM or data are not of the workflow's making.
    """
    plan = Plan.from_raw(read_study(study))
    run = next((r for r in plan.trained if r.superpixels is not None and r.superpixels.uses_sam), None)
    if run is None or not plan.is_pretrained(run, "sam") or run.data.kind != "synthetic":
        raise ValueError(f"{study} pretrains no SAM on scenes of its own; name a SAM and images")
    assert run.superpixels is not None
    sam, prepared = plan.model_dir(plan.model_key(run, "sam")), plan.prepared_dir(run)
    wanted: list[tuple[StageName, str, Path]] = [
        ("prepare", plan.data_key(run), prepared / "summary.json"),
        ("pool", plan.pool_key(run), plan.pool_dir(run) / "summary.json"),
        ("pretrain", plan.model_key(run, "sam"), sam / "done.json"),
    ]
    if not all(made.is_file() for _, _, made in wanted):
        plan.save(plan.config_file)
    for stage, key, made in wanted:
        if not made.is_file():
            run_stage(stage, plan.config_file, key=key)
    expressions = pd.read_parquet(prepared / "expressions.parquet")
    held_out = expressions.loc[expressions["split"] != "train", "image_id"].drop_duplicates().sort_values()
    chosen = held_out.iloc[:: max(1, len(held_out) // count)].head(count)
    paths = pd.read_parquet(prepared / "images.parquet").set_index("image_id")["path"]
    return sam, [prepared.parent / paths[i] for i in chosen], dict(run.superpixels.options)
