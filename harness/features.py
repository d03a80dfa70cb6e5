"""Frozen features, computed once an image and read memory-mapped by every run.

A folder holds ``data.npy`` (``[N, …]`` float16, one row an image) and ``index.json`` (image ids in row
order, the format's version). SAM's and the vision encoder's outputs never change across projectors
and seeds; at paper size they cost more than the language model.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from harness.config import RunConfig
from harness.data.tables import load_tables
from harness.discovery import load_projector
from harness.files import atomic_path, read_json, write_json
from harness.images import read_rgb
from harness.models.sam import load_sam, sam_input
from harness.models.vision import load_vision
from harness.projector import EncoderHook

__all__ = ["FeatureArray", "encoder_hook", "feature_stage"]

VERSION = 1


class FeatureArray:
    """One cached array, read row by row without loading the file."""

    def __init__(self, folder: Path | str):
        """Open the array in ``folder``.

        Raises:
            ValueError: it was written by another version, or rows are missing.
        """
        folder = Path(folder)
        index = read_json(folder / "index.json")
        if index.get("version") != VERSION:
            raise ValueError(
                f"{folder} was written by version {index.get('version')}; delete it and run again"
            )
        self.data = np.load(folder / "data.npy", mmap_mode="r")
        self.rows = {image_id: row for row, image_id in enumerate(index["image_ids"])}
        if len(self.data) != len(self.rows):
            raise ValueError(
                f"{folder}: {len(self.data)} rows for {len(self.rows)} images; delete it, run again"
            )

    def batch(self, image_ids: list[int]) -> Tensor:
        """``[b, …]`` float32 rows of the images, in order."""
        return torch.from_numpy(self.data[[self.rows[i] for i in image_ids]].astype(np.float32))


def encoder_hook(run: RunConfig) -> EncoderHook:
    """What a run's projector does inside the encoder.

    Raises:
        ValueError: its projector needs ``encoder_tokens`` and gives no hook.
    """
    projector = load_projector(run.source)
    hook = projector.encoder_hook(run.models.vision.grid, run.budget, projector.Config(**run.config))
    if hook is None:
        raise ValueError(f"{run.source} needs encoder_tokens and has no encoder_hook to make them")
    return hook


@torch.no_grad()
def feature_stage(
    item: str, run: RunConfig, data_dir: Path, model: Path | str, out_dir: Path, batch: int = 16
) -> None:
    """Encode every image of the prepared data.

    Args:
        item: ``patches``, ``levels``, ``cls_attention``, ``keys``, ``encoder_tokens`` or ``sam``.
        run: a run that uses the array (for its model options, and its projector's encoder hook).
        data_dir: the prepared data's folder.
        model: folder or name of the encoder.
        out_dir: where the array goes.
        batch: images at a time.
    """
    tables = load_tables(data_dir / "prepared")
    images = tables.images.sort_values("image_id")
    torch.set_num_threads(run.training.torch_threads)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if item == "sam":
        sam = load_sam(model, run.models.sam.kind, run.models.sam.sha256).to(device)

        def encode(arrays: list[np.ndarray]) -> Tensor:
            return sam.image_encoder(torch.stack([sam_input(a, sam) for a in arrays]))
    else:
        vision = load_vision(run.models.vision, model).to(device)
        hook = encoder_hook(run) if item == "encoder_tokens" else None

        def encode(arrays: list[np.ndarray]) -> Tensor:
            pixels = torch.stack([vision.preprocess(a) for a in arrays])
            if hook is not None:
                return vision.encoder_tokens(pixels, hook)
            out = vision(pixels, attention=item in ("cls_attention", "keys"))
            value = torch.stack(out.levels, 1) if item == "levels" else getattr(out, item)
            if value is None or value.numel() == 0:
                raise ValueError(f"vision encoder '{run.models.vision.kind}' gives no {item}")
            return value

    ids = images["image_id"].tolist()
    paths = [tables.image_path(i) for i in ids]
    with atomic_path(out_dir / "data.npy") as aside:
        array = None
        for start in tqdm(range(0, len(ids), batch), desc=f"features {item}", unit="batch", mininterval=5):
            value = encode([read_rgb(p) for p in paths[start : start + batch]]).half().cpu().numpy()
            if array is None:
                array = open_memmap(aside, mode="w+", dtype=np.float16, shape=(len(ids), *value.shape[1:]))
            array[start : start + len(value)] = value
        if array is not None:
            array.flush()
    write_json(out_dir / "index.json", {"version": VERSION, "item": item, "image_ids": ids})
