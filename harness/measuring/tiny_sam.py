"""The tiny SAM that the workflow pretrains, and scenes it has not seen, made where there are none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from harness.config.resolve import read_study
from harness.planning.keys import is_pretrained
from harness.planning.plan import Plan
from harness.running.stages import StageName, run_stage

__all__ = ["TinySam", "tiny_sam_and_scenes"]


@dataclass(frozen=True)
class TinySam:
    """A study's tiny SAM.

    Attributes:
        folder: of its weights.
        scenes: of the held-out splits.
        train_scenes: as many of the train split.
        options: of the study's SAM superpixels.
    """

    folder: Path
    scenes: list[Path]
    train_scenes: list[Path]
    options: dict[str, Any]


def tiny_sam_and_scenes(count: int, study: Path = Path("config/default.yaml")) -> TinySam:
    """A study's pretrained SAM, and scenes.

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
    if run is None or not is_pretrained(run, "sam") or run.data.kind != "synthetic":
        raise ValueError(f"{study} pretrains no SAM on scenes of its own; name a SAM and images")
    assert run.superpixels is not None
    keys = plan.keys(run)
    sam, prepared = plan.model_dir(keys.model("sam")), plan.prepared_dir(run)
    wanted: list[tuple[StageName, str, Path]] = [
        ("prepare", keys.data, prepared / "summary.json"),
        ("pool", keys.pool, plan.pool_dir(run) / "summary.json"),
        ("pretrain", keys.model("sam"), sam / "done.json"),
    ]
    if not all(made.is_file() for _, _, made in wanted):
        plan.save(plan.config_file)
    for stage, key, made in wanted:
        if not made.is_file():
            run_stage(stage, plan.config_file, key=key)
    expressions = pd.read_parquet(prepared / "expressions.parquet")
    paths = pd.read_parquet(prepared / "images.parquet").set_index("image_id")["path"]

    def spread(chosen: pd.Series) -> list[Path]:
        ids = expressions.loc[chosen, "image_id"].drop_duplicates().sort_values()
        return [prepared.parent / paths[i] for i in ids.iloc[:: max(1, len(ids) // count)].head(count)]

    train = expressions["split"] == "train"
    return TinySam(sam, spread(~train), spread(train), dict(run.superpixels.options))
