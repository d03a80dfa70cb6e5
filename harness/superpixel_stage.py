"""Runs a superpixel source over a run's prepared images, from the files that earlier stages wrote."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from pydantic import ValidationError

from harness.config import RunConfig
from harness.data.tables import Tables, load_tables
from harness.features import open_features
from harness.models.sam import load_sam
from harness.plan import Plan
from harness.superpixels import SuperpixelSource, load_source, write_superpixels
from harness.triggers import superpixel_trigger

__all__ = ["build_source", "superpixel_stage"]


def build_source(plan: Plan, run: RunConfig, tables: Tables | None = None) -> SuperpixelSource:
    """The run's superpixel source, with its options and, where it asks for one, the run's SAM.

    Args:
        plan: the study.
        run: names the source and the SAM.
        tables: the prepared tables, for sources that look annotations up.

    Raises:
        ValueError: the run uses no superpixels, or an option is unknown or wrong.
    """
    config = run.superpixels
    if config is None:
        raise ValueError(f"{run.id} uses no superpixels")
    source_class = load_source(config.source)
    values = dict(config.options)
    if "annotations" in source_class.Config.model_fields:
        # An oracle looks masks up in the tables of the run's own data, unless it names others.
        values.setdefault("annotations", plan.prepared_dir(run) / "annotations.parquet")
    try:
        options = source_class.Config(**values)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise ValueError(f"superpixels: {config.source}: {place}: {first['msg']}") from error
    sam = None
    if source_class.needs_sam:
        sam = load_sam(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256)
    return source_class(options, sam)


def superpixel_stage(plan: Plan, run: RunConfig) -> None:
    """Write the superpixel store of a run (see :func:`harness.superpixels.write_superpixels`)."""
    torch.set_num_threads(run.training.torch_threads)
    tables = load_tables(plan.data_dir(plan.data_key(run)) / "prepared")
    source = build_source(plan, run, tables)
    images: pd.DataFrame = tables.images.sort_values("image_id", ignore_index=True)
    images = images.assign(path=[str(tables.image_path(i)) for i in images["image_id"]])
    folder, model = plan.feature_dir(plan.feature_key(run, "sam")), partial(plan.model_source, run, "sam")
    embeddings = open_features(folder, "sam", run, model, tables) if source.needs_sam else None
    write_superpixels(
        images,
        source,
        run.models.vision.grid,
        plan.superpixel_dir(str(plan.superpixel_key(run))),
        identity={
            "key": plan.superpixel_key(run),
            "code": superpixel_trigger(plan, str(plan.superpixel_key(run))),
        },
        sam_embeddings=(lambda i: embeddings.batch([i])[0]) if embeddings is not None else None,
    )
