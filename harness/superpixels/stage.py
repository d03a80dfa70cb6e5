"""Runs a superpixel source over a run's prepared images, from the files that earlier stages wrote."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from pydantic import ValidationError
from tqdm import tqdm

from harness.config import RunConfig
from harness.data.tables import load_tables
from harness.features.cache import open_features
from harness.files import digest, write_json
from harness.images import read_rgb
from harness.planning.plan import Plan
from harness.planning.triggers import superpixel_identity
from harness.plugins.discovery import load_source
from harness.superpixels.source import SuperpixelConfig, SuperpixelSource, open_sam
from harness.superpixels.store import FORMAT_VERSION, encode_image, read_shard_rows, summarise, write_shard

__all__ = ["build_source", "source_options", "superpixel_stage", "write_superpixels"]


def source_options(plan: Plan, run: RunConfig, source: type[SuperpixelSource]) -> SuperpixelConfig:
    """The options of a run's superpixels, checked by their source.

    Raises:
        pydantic.ValidationError: one is unknown or wrong.
    """
    assert run.superpixels is not None
    values = dict(run.superpixels.options)
    if "annotations" in source.Config.model_fields:
        # An oracle looks masks up in the tables of the run's own data, unless it names others.
        values.setdefault("annotations", plan.prepared_dir(run) / "annotations.parquet")
    return source.Config(**values)


def build_source(plan: Plan, run: RunConfig) -> SuperpixelSource:
    """The run's superpixel source, with its options and any SAM that it asks for, on the GPU if any.

    Args:
        plan: the study.
        run: names the source and the SAM.

    Raises:
        ValueError: the run uses no superpixels, or an option is unknown or wrong.
    """
    config = run.superpixels
    if config is None:
        raise ValueError(f"{run.id} uses no superpixels")
    source_class = load_source(config.source)
    try:
        options = source_options(plan, run, source_class)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(p) for p in first["loc"])
        raise ValueError(f"superpixels: {config.source}: {place}: {first['msg']}") from error
    sam = None
    if source_class.needs_sam:
        sam = open_sam(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256)
    return source_class(options, sam)


def write_superpixels(
    images: pd.DataFrame,
    source: SuperpixelSource,
    grid: tuple[int, int],
    out_dir: Path | str,
    *,
    root: Path | str = ".",
    identity: dict[str, Any] | None = None,
    sam_embeddings: Callable[[int], Any] | None = None,
    shard_size: int = 512,
    progress: bool = True,
) -> dict[str, Any]:
    """Every image once, in atomic shards, then the manifest.

    A killed job resumes after its last whole shard; a shard of another source, option, grid, identity or
    image list is computed again. An image without any superpixel (a blank one) gets one that covers it
    all, and is listed under ``blank`` in the manifest.

    Args:
        images: columns ``image_id`` and ``path`` (relative to ``root``).
        source: the superpixel source.
        grid: ``(h, w)`` of the patch grid, which spans the whole image.
        out_dir: folder of ``part-*.parquet`` and ``manifest.json``.
        root: folder that the paths are relative to.
        identity: what else the result depends on (a hash of the SAM weights), kept in the manifest.
        sam_embeddings: image id to the cached SAM embedding ``[C, h, w]``.
        shard_size: images a shard.
        progress: whether to show a progress bar on stderr.

    Returns:
        The manifest, as written.

    Raises:
        ValueError: an image cannot be read, or image ids repeat.
    """
    out_dir, base = Path(out_dir), Path(root)
    ids = [int(i) for i in images["image_id"]]
    if len(set(ids)) != len(ids):
        raise ValueError("images: an image_id occurs twice; the prepared table must hold each image once")
    paths = [base / str(p) for p in images["path"]]
    described = {
        "format": FORMAT_VERSION,
        "source": source.name,
        "config": source.config.model_dump(mode="json"),
        "grid": list(grid),
        "identity": identity or {},
    }
    fingerprint = digest(described, 16)
    out_dir.mkdir(parents=True, exist_ok=True)
    manifest_path = out_dir / "manifest.json"
    manifest_path.unlink(missing_ok=True)
    shards: list[dict[str, Any]] = []
    rows: list[dict[str, Any]] = []
    with tqdm(total=len(ids), desc=f"superpixels {source.name}", unit="image", disable=not progress) as bar:
        for number, start in enumerate(range(0, len(ids), shard_size)):
            chunk = range(start, min(start + shard_size, len(ids)))
            path = out_dir / f"part-{number:05d}.parquet"
            done = read_shard_rows(path, fingerprint, [ids[i] for i in chunk])
            if done is None:
                encoded = []
                for first in range(0, len(chunk), source.images_at_once):
                    some = chunk[first : first + source.images_at_once]
                    given = [sam_embeddings(ids[i]) if sam_embeddings is not None else None for i in some]
                    photographs = [read_rgb(paths[i]) for i in some]
                    made = source.generate_all(
                        photographs, image_ids=[ids[i] for i in some], sam_embeddings=given
                    )
                    encoded += [encode_image(ids[i], m, grid) for i, m in zip(some, made, strict=True)]
                    bar.update(len(some))
                done = write_shard(path, encoded, fingerprint)
            else:
                bar.update(len(chunk))
            rows += done
            shards.append({"file": path.name, "images": len(chunk), "bytes": path.stat().st_size})
    for stray in set(out_dir.glob("part-*.parquet")) - {out_dir / s["file"] for s in shards}:
        stray.unlink()
    manifest = described | {"fingerprint": fingerprint, "shards": shards} | summarise(rows)
    write_json(manifest_path, manifest)
    return manifest


def superpixel_stage(plan: Plan, run: RunConfig) -> None:
    """Write the superpixel store of a run (see :func:`write_superpixels`)."""
    torch.set_num_threads(run.training.torch_threads)
    tables = load_tables(plan.prepared_dir(run))
    source = build_source(plan, run)
    images: pd.DataFrame = tables.images.sort_values("image_id", ignore_index=True)
    images = images.assign(path=[str(tables.image_path(i)) for i in images["image_id"]])
    key = str(plan.keys(run).superpixels)
    folder, model = plan.feature_dir(plan.keys(run).feature("sam")), partial(plan.model_source, run, "sam")
    embeddings = open_features(folder, "sam", run, model, tables) if source.needs_sam else None
    write_superpixels(
        images,
        source,
        run.models.vision.grid,
        plan.superpixel_dir(key),
        identity={"key": key, "upstream": superpixel_identity(plan, key)},
        sam_embeddings=(lambda i: embeddings.batch([i])[0]) if embeddings is not None else None,
    )
