"""Superpixels on disk: once per image, in shards that training reads without decoding a mask.

A row holds an image's masks as RLE, their share of every patch cell (``occupancy``) and the weights
that pool patches exactly as averaging the bilinearly up-sampled patch map under the mask would.
Bilinear up-sampling is a linear map of the patch grid, ``Y = A_y X A_x^T``; averaging ``Y`` under a
mask ``M`` is therefore the inner product of ``X`` with ``A_y^T M A_x / sum(M)``, which is what is kept.
Where masks overlap, the sum of their shares is more than they cover: how much more (``excess``) is kept too.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from pycocotools import mask as coco_mask

from harness.files import atomic_path, read_json
from harness.projector import Superpixels
from harness.superpixels.source import SuperpixelMasks

__all__ = [
    "FORMAT_VERSION",
    "SuperpixelStore",
    "area_map",
    "bilinear_map",
    "encode_image",
    "mask_geometry",
    "on_grid",
    "stood_in",
]

FORMAT_VERSION = 2
_ROW_GROUP = 16  # images read at once: a random access costs about one megabyte at paper size
_CHUNK = 32  # masks whose float copies are held at once
_STATISTICS = ("image_id", "count", "coverage", "overlap", "blank")
_GEOMETRY = ("image_id", "count", "occupancy", "weights", "boxes", "areas", "excess")

_SCHEMA = pa.schema(
    [
        ("image_id", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("count", pa.int32()),
        ("coverage", pa.float64()),
        ("overlap", pa.float64()),
        ("blank", pa.bool_()),
        ("rle", pa.list_(pa.binary())),
        ("scores", pa.list_(pa.float32())),
        ("levels", pa.list_(pa.int8())),
        ("boxes", pa.binary()),
        ("areas", pa.binary()),
        ("occupancy", pa.binary()),
        ("weights", pa.binary()),
        ("excess", pa.binary()),
    ]
)


@lru_cache(maxsize=256)
def bilinear_map(size: int, cells: int) -> np.ndarray:
    """``[size, cells]``: bilinear resampling of ``cells`` values to ``size`` (``align_corners=False``)."""
    position = np.maximum((np.arange(size) + 0.5) * cells / size - 0.5, 0)
    low = np.minimum(position.astype(int), cells - 1)
    high = np.minimum(low + 1, cells - 1)
    share = position - low
    result = np.zeros((size, cells))
    np.add.at(result, (np.arange(size), low), 1 - share)
    np.add.at(result, (np.arange(size), high), share)
    return result.astype(np.float32)


@lru_cache(maxsize=256)
def area_map(cells: int, size: int) -> np.ndarray:
    """``[cells, size]``: mean over each cell's exact (fractional) extent of ``size`` values."""
    edges = np.arange(cells + 1) * size / cells
    pixels = np.arange(size)
    overlap = np.minimum(edges[1:, None], pixels + 1) - np.maximum(edges[:-1, None], pixels)
    return (np.clip(overlap, 0, None) * cells / size).astype(np.float32)


def mask_geometry(masks: np.ndarray, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """What training needs of masks, on the patch grid that spans the whole image.

    Args:
        masks: ``[K, H, W]`` bool, none empty.
        grid: ``(h, w)``, ``n = h * w``.

    Returns:
        ``occupancy`` ``[K, n]`` uint8 (share of the cell times 255, at least 1 where touched),
        ``weights`` ``[K, n]`` float16 (rows sum to 1), ``boxes`` ``[K, 4]`` float32 normalised
        ``x1, y1, x2, y2``, ``areas`` ``[K]`` float32 share of the image, ``excess`` ``[n]`` int32: the sum
        of the occupancies less that of the masks' union (255 for a whole cell), 0 where none overlap.
    """
    count, height, width = masks.shape
    (h, w), n = grid, grid[0] * grid[1]
    occupancy, weights = np.zeros((count, n), np.uint8), np.zeros((count, n), np.float16)
    boxes, areas = np.zeros((count, 4), np.float32), np.zeros(count, np.float32)
    for start in range(0, count, _CHUNK):
        part = slice(start, start + _CHUNK)
        full = masks[part].astype(np.float32)
        occupancy[part] = _shares(full, grid).reshape(-1, n)
        adjoint = (bilinear_map(height, h).T @ full @ bilinear_map(width, w)).reshape(-1, n)
        weights[part] = adjoint / adjoint.sum(axis=1, keepdims=True)
        areas[part] = full.mean(axis=(1, 2), dtype=np.float64)
        for i, mask in enumerate(masks[part], start):
            ys, xs = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
            boxes[i] = xs[0] / width, ys[0] / height, (xs[-1] + 1) / width, (ys[-1] + 1) / height
    layers = masks.sum(axis=0, dtype=np.int32)
    union, shared = (_shares((layers > least).astype(np.float32), grid).ravel() for least in (0, 1))
    excess = np.where(shared > 0, occupancy.sum(axis=0, dtype=np.int32) - union, 0).astype(np.int32)
    return {"occupancy": occupancy, "weights": weights, "boxes": boxes, "areas": areas, "excess": excess}


def _shares(full: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """``[..., h, w]`` uint8: 255 times the share of each cell that ``full [..., H, W]`` (0 or 1) covers."""
    height, width = full.shape[-2:]
    share = area_map(grid[0], height) @ full @ area_map(grid[1], width).T
    # a touched cell never rounds to zero, so that no mask vanishes from the attention
    return np.where(share > 1e-7, np.clip(np.rint(share * 255), 1, 255), 0).astype(np.uint8)


def stood_in(made: SuperpixelMasks) -> SuperpixelMasks:
    """The superpixels; where there is none, one that covers the whole image."""
    if len(made.masks):
        return made
    whole = np.ones((1, *made.masks.shape[1:]), bool)
    return SuperpixelMasks(whole, np.zeros(1, np.float32), np.full(1, 2, np.int8))


def on_grid(geometry: Sequence[Mapping[str, np.ndarray]]) -> Superpixels:
    """The superpixels of ``b`` images, float32, from what :func:`mask_geometry` gave of each."""
    weights = torch.from_numpy(np.concatenate([g["weights"] for g in geometry]).astype(np.float32))
    occupancy = torch.from_numpy(np.concatenate([g["occupancy"] for g in geometry]))
    excess = torch.from_numpy(np.stack([g["excess"] for g in geometry]))
    return Superpixels(
        occupancy=occupancy.to(torch.float32) / 255,
        weights=weights / weights.sum(dim=1, keepdim=True),
        boxes=torch.from_numpy(np.concatenate([g["boxes"] for g in geometry])),
        areas=torch.from_numpy(np.concatenate([g["areas"] for g in geometry])),
        lengths=torch.tensor([len(g["areas"]) for g in geometry], dtype=torch.long),
        excess=excess.to(torch.float32) / 255,
    )


def encode_image(image_id: int, made: SuperpixelMasks, grid: tuple[int, int]) -> dict[str, Any]:
    """One image's row; ``blank`` says that the source found nothing (see :func:`stood_in`)."""
    blank = len(made.masks) == 0
    made = stood_in(made)
    masks, scores, levels = made.masks, made.scores, made.levels
    geometry = mask_geometry(masks, grid)
    layers = masks.sum(axis=0, dtype=np.int32)
    covered = int((layers > 0).sum())
    encoded = coco_mask.encode(np.asfortranarray(masks.transpose(1, 2, 0).astype(np.uint8)))
    return {
        "image_id": image_id,
        "height": masks.shape[1],
        "width": masks.shape[2],
        "count": len(masks),
        "coverage": covered / layers.size,
        "overlap": float((layers > 1).sum()) / max(covered, 1),
        "blank": blank,
        "rle": [e["counts"] for e in encoded],
        "scores": np.asarray(scores, np.float32),
        "levels": np.asarray(levels, np.int8),
    } | {name: value.tobytes() for name, value in geometry.items()}


def write_shard(path: Path, rows: list[dict[str, Any]], fingerprint: str) -> list[dict[str, Any]]:
    """Write rows of :func:`encode_image` as one atomic shard; returns their statistics."""
    schema = _SCHEMA.with_metadata({"superpixels": fingerprint, "format": str(FORMAT_VERSION)})
    with atomic_path(path) as aside:
        table = pa.Table.from_pylist(rows, schema=schema)
        pq.write_table(table, aside, row_group_size=_ROW_GROUP, compression="zstd")
    return [{name: row[name] for name in _STATISTICS} for row in rows]


def read_shard_rows(path: Path, fingerprint: str, image_ids: list[int]) -> list[dict[str, Any]] | None:
    """Statistics of a shard that is whole and of this fingerprint and image list, else ``None``."""
    try:
        with pq.ParquetFile(path) as shard:
            metadata = shard.schema_arrow.metadata or {}
            if metadata.get(b"superpixels") != fingerprint.encode():
                return None
            rows = shard.read(list(_STATISTICS)).to_pylist()
    except (OSError, pa.ArrowInvalid):
        return None
    return rows if [row["image_id"] for row in rows] == image_ids else None


def summarise(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The manifest's statistics: counts of every image, their mean and quantiles, coverage, overlap."""
    counts = np.array([row["count"] for row in rows] or [0])
    p5, median, p95 = (float(v) for v in np.percentile(counts, (5, 50, 95)))
    return {
        "image_count": len(rows),
        "superpixel_count": int(counts.sum()),
        "mean_count": float(counts.mean()),
        "count_p5": p5,
        "count_p50": median,
        "count_p95": p95,
        "count_max": int(counts.max()),
        "coverage": float(np.mean([row["coverage"] for row in rows] or [0])),
        "overlap": float(np.mean([row["overlap"] for row in rows] or [0])),
        "blank": [row["image_id"] for row in rows if row["blank"]],
        "counts": {str(row["image_id"]): row["count"] for row in rows},
    }


class SuperpixelStore:
    """Reads a folder written by :func:`harness.superpixels.stage.write_superpixels`.

    Attributes:
        manifest: the manifest as a dict.
        grid: ``(h, w)`` of the patch grid.
        cache_bytes: how much decoded geometry is kept in memory.
    """

    def __init__(self, folder: Path | str, *, cache_bytes: int = 256 << 20):
        """Open a store and check every shard's version and size.

        Raises:
            ValueError: no manifest, another format version, or a shard missing or cut short.
        """
        self.folder, self.cache_bytes = Path(folder), cache_bytes
        path = self.folder / "manifest.json"
        if not path.is_file():
            raise ValueError(f"{path} is missing; run the superpixel stage to its end")
        self.manifest: dict[str, Any] = read_json(path)
        if self.manifest.get("format") != FORMAT_VERSION:
            raise ValueError(
                f"{path} has format {self.manifest.get('format')}, this reader knows {FORMAT_VERSION};"
                " delete the folder and run the superpixel stage again"
            )
        self.grid: tuple[int, int] = tuple(self.manifest["grid"])
        self._where: dict[int, tuple[str, int, int]] = {}
        for shard in self.manifest["shards"]:
            self._index(shard)
        self._files: dict[str, pq.ParquetFile] = {}
        self._cache: OrderedDict[tuple[str, int], tuple[list[dict[str, Any]], int]] = OrderedDict()
        self._cached_bytes = 0

    def _index(self, shard: dict[str, Any]) -> None:
        path, mend = self.folder / shard["file"], "delete it and run the superpixel stage again"
        if not path.is_file() or path.stat().st_size != shard["bytes"]:
            size = path.stat().st_size if path.is_file() else 0
            raise ValueError(f"{path} has {size} bytes of {shard['bytes']}; {mend}")
        try:
            with pq.ParquetFile(path) as file:
                stamp = (file.schema_arrow.metadata or {}).get(b"superpixels", b"").decode()
                ids = file.read(["image_id"]).column(0).to_pylist()
        except (OSError, pa.ArrowInvalid) as error:
            raise ValueError(f"{path} cannot be read ({error}); {mend}") from error
        if stamp != self.manifest["fingerprint"]:
            raise ValueError(f"{path} was written by another run than the manifest; {mend}")
        for row, image_id in enumerate(ids):
            self._where[image_id] = (shard["file"], row // _ROW_GROUP, row % _ROW_GROUP)

    def __len__(self) -> int:
        return len(self._where)

    def __contains__(self, image_id: int) -> bool:
        return int(image_id) in self._where

    @property
    def image_ids(self) -> list[int]:
        """Every image id, in the order of the prepared table."""
        return list(self._where)

    def count(self, image_id: int) -> int:
        """How many superpixels an image has."""
        return int(self.manifest["counts"][str(self._known(image_id))])

    def batch(self, image_ids: Sequence[int]) -> Superpixels:
        """The superpixels of ``b`` images on the patch grid, float32, packed in the order asked for.

        Raises:
            ValueError: an image is not in the store; the message names it.
        """
        return on_grid([self._geometry(i) for i in image_ids])

    def masks(self, image_id: int) -> SuperpixelMasks:
        """Full-resolution masks of one image, for overlays and the oracle; not for training."""
        file, group, place = self._where[self._known(image_id)]
        columns = ["height", "width", "rle", "scores", "levels"]
        row = self._open(file).read_row_group(group, columns).slice(place, 1).to_pylist()[0]
        size = [row["height"], row["width"]]
        decoded = coco_mask.decode([{"size": size, "counts": counts} for counts in row["rle"]])
        return SuperpixelMasks(
            np.ascontiguousarray(decoded.transpose(2, 0, 1)).astype(bool),
            np.asarray(row["scores"], np.float32),
            np.asarray(row["levels"], np.int8),
        )

    def _known(self, image_id: int) -> int:
        if int(image_id) not in self._where:
            raise ValueError(
                f"{self.folder} has no superpixels of image {image_id}; run the superpixel stage again"
            )
        return int(image_id)

    def _open(self, file: str) -> pq.ParquetFile:
        if file not in self._files:
            self._files[file] = pq.ParquetFile(self.folder / file, memory_map=True)
        return self._files[file]

    def _geometry(self, image_id: int) -> dict[str, Any]:
        file, group, place = self._where[self._known(image_id)]
        key = (file, group)
        if key in self._cache:
            self._cache.move_to_end(key)
            return self._cache[key][0][place]
        n = self.grid[0] * self.grid[1]
        rows = self._open(file).read_row_group(group, list(_GEOMETRY)).to_pylist()
        size = 0
        for row in rows:
            size += sum(len(row[name]) for name in _GEOMETRY[2:])
            row["occupancy"] = np.frombuffer(row["occupancy"], np.uint8).reshape(-1, n)
            row["weights"] = np.frombuffer(row["weights"], np.float16).reshape(-1, n)
            row["boxes"] = np.frombuffer(row["boxes"], np.float32).reshape(-1, 4)
            row["areas"] = np.frombuffer(row["areas"], np.float32)
            row["excess"] = np.frombuffer(row["excess"], np.int32)
        self._cache[key] = (rows, size)
        self._cached_bytes += size
        while self._cached_bytes > self.cache_bytes and len(self._cache) > 1:
            _, (_, dropped) = self._cache.popitem(last=False)
            self._cached_bytes -= dropped
        return rows[place]
