"""Frozen features, computed once an image and read memory-mapped by every run.

A folder holds ``shard-*.npy`` (``[N, …]``, one row an image) and ``index.json`` (the images of each shard,
dtype and shape of a row, the format's version), written last. SAM's and the vision encoder's outputs never
change across projectors and seeds; at paper size they cost more than the language model.

A budget cuts the list of images, those of ``train`` first. Training draws images uniformly, so that a fixed
choice is hit as often as a least-recently-used one would be, and never written twice. Images that are not
stored are encoded when they are asked for, and rounded to the cache's dtype: the numbers are the same.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from harness.config import RunConfig
from harness.data.tables import Tables, load_tables
from harness.features.encoding import ImageEncoder
from harness.files import atomic_path, read_json, write_json
from harness.images import read_rgb

__all__ = ["FeatureArray", "FeatureSource", "feature_stage", "open_features"]

VERSION = 2
_SHARD_BYTES = 2**28
# Each open shard holds a file descriptor, of which a process may have as few as 256.
_OPEN_SHARDS = 64


class FeatureArray:
    """One cached array, read row by row without loading its shards.

    Attributes:
        dtype: of the rows.
        shape: of a row.
    """

    def __init__(self, folder: Path | str):
        """Open the array in ``folder``.

        Every shard is looked at; only the few that were read last are held open, whichever arrays they
        are of.

        Raises:
            ValueError: it was written by another version, or a shard is damaged.
            OSError: a shard that may be whole cannot be opened.
        """
        folder = Path(folder)
        index = read_json(folder / "index.json")
        if index.get("version") != VERSION:
            raise ValueError(
                f"{folder} was written by version {index.get('version')}; delete it and run again"
            )
        self.dtype: torch.dtype = getattr(torch, index["dtype"])
        self.shape: tuple[int, ...] = tuple(index["shape"])
        self._shards: list[tuple[Path, tuple[int, ...], tuple[int, int]]] = []
        self._place: dict[int, tuple[int, int]] = {}
        for number, image_ids in enumerate(index["shards"]):
            path = folder / _shard_name(number)
            shard = (path, (len(image_ids), *self.shape), _version(path))
            _open_shard(*shard)
            self._shards.append(shard)
            self._place |= {image_id: (number, row) for row, image_id in enumerate(image_ids)}

    def __contains__(self, image_id: int) -> bool:
        return image_id in self._place

    def __len__(self) -> int:
        return len(self._place)

    def row(self, image_id: int) -> Tensor:
        """The row of an image, in the cache's dtype.

        Raises:
            ValueError: its shard was damaged or replaced after the array was opened.
            OSError: its shard cannot be opened.
        """
        number, row = self._place[image_id]
        return torch.from_numpy(_open_shard(*self._shards[number])[row].copy()).view(self.dtype)


class FeatureSource:
    """Rows of any image: stored ones read, others encoded now."""

    def __init__(self, array: FeatureArray, encode: Callable[[int], Tensor]):
        """From an array and what encodes an image by id; it is called for images that are not stored."""
        self.array, self._encode = array, encode

    @property
    def width(self) -> int:
        """Last dimension of a row."""
        return self.array.shape[-1]

    def batch(self, image_ids: Sequence[int], device: torch.device | str = "cpu") -> Tensor:
        """``[b, …]`` float32 rows of the images, in order."""
        rows = [
            self.array.row(i).to(device) if i in self.array else self._encode(i).to(device) for i in image_ids
        ]
        return torch.stack(rows).float()


def open_features(
    folder: Path, item: str, run: RunConfig, model: Callable[[], str], tables: Tables
) -> FeatureSource:
    """The cached ``item`` in ``folder``; the encoder at ``model`` is loaded when an image is missing.

    Raises:
        ValueError: the cache is damaged; of a row that is encoded now: it is not finite.
        OSError: the cache cannot be opened.
    """
    encoders: list[ImageEncoder] = []

    def encode(image_id: int) -> Tensor:
        if not encoders:
            encoders.append(ImageEncoder(item, run, model()))
        return _encoded(encoders[0], tables, image_id)

    return FeatureSource(FeatureArray(folder), encode)


def _encoded(encoder: ImageEncoder, tables: Tables, image_id: int) -> Tensor:
    """The item of an image; a row that is not finite is refused, as every loss of its image would be NaN."""
    value = encoder(read_rgb(tables.image_path(image_id)))
    if value.isfinite().all():
        return value
    item, dtype = encoder.item, str(value.dtype).removeprefix("torch.")
    if dtype == "float16" and not value.isnan().any():
        raise ValueError(
            f"{item} of image {image_id} exceeds what float16 holds; set models.features.dtype: bfloat16"
        )
    raise ValueError(
        f"{item} of image {image_id} is not finite in {dtype}; look at the encoder's weights, or set "
        "models.features.compute: float32"
    )


def _shard_name(number: int) -> str:
    return f"shard-{number:05d}.npy"


_DAMAGED = "delete the folder and run again"


def _version(path: Path) -> tuple[int, int]:
    """Time of the last change, ns, and bytes of a shard."""
    try:
        found = path.stat()
    except OSError as error:
        raise _unreadable(path, error) from error
    return found.st_mtime_ns, found.st_size


@lru_cache(maxsize=_OPEN_SHARDS)
def _open_shard(path: Path, shape: tuple[int, ...], version: tuple[int, int]) -> np.ndarray:
    """A shard of ``shape`` as :func:`_version` saw it, mapped; one mapping serves all arrays of a process."""
    if _version(path) != version:
        raise ValueError(f"{path} was replaced while it was read; run again")
    try:
        data = np.load(path, mmap_mode="r")
    except (OSError, EOFError, ValueError) as error:
        raise _unreadable(path, error) from error
    if data.shape != shape:
        raise ValueError(f"{path} holds {data.shape}, its index says {shape}; {_DAMAGED}")
    return data


def _unreadable(path: Path, error: Exception) -> Exception:
    # What the system refuses says nothing of the file, which took hours to make.
    if not isinstance(error, OSError) or isinstance(error, FileNotFoundError):
        return ValueError(f"{path} cannot be read ({error}); {_DAMAGED}")
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return OSError(f"{path} cannot be opened: too many files are open; raise `ulimit -n` and run again")
    return OSError(f"{path} cannot be opened ({error.strerror or error}); see to the disk and run again")


def _numpy(value: Tensor) -> np.ndarray:
    # numpy has no bfloat16: its bits are stored as 16-bit integers
    value = value.cpu()
    return (value.view(torch.int16) if value.dtype == torch.bfloat16 else value).numpy()


def _chosen(tables: Tables, most: int | None) -> list[int]:
    """Images to store, those of ``train`` first, by id."""
    train = set(tables.expressions.loc[tables.expressions["split"] == "train", "image_id"])
    return sorted(tables.images["image_id"].tolist(), key=lambda i: (i not in train, i))[:most]


def feature_stage(
    item: str,
    run: RunConfig,
    data_dir: Path,
    model: Path | str,
    out_dir: Path,
    *,
    identity: str,
    shard_bytes: int = _SHARD_BYTES,
) -> None:
    """Encode the images of the prepared data, as many as the budget holds.

    A shard is written whole; a job that was killed goes on with the next one.

    Args:
        item: one of :data:`harness.config.FEATURE_ITEMS`.
        run: a run that uses the array (for its model options, and its projector's encoder hook).
        data_dir: the prepared data's folder.
        model: folder, checkpoint or name of the encoder.
        out_dir: where the array goes.
        identity: what the rows hang on; shards of another identity are written anew.
        shard_bytes: most that a shard holds, one row at least.

    Raises:
        ValueError: a row is not finite in the cache's dtype; its shard is not written.
    """
    tables = load_tables(data_dir / "prepared")
    torch.set_num_threads(run.training.torch_threads)
    encoder = ImageEncoder(item, run, model)
    first = _encoded(encoder, tables, _chosen(tables, 1)[0])
    row_bytes = first.numel() * first.element_size()
    budget = run.models.features.budget_gb.get(item)
    ids = _chosen(tables, None if budget is None else int(budget * 1e9 // row_bytes))
    each = max(1, shard_bytes // row_bytes)
    shards = [ids[start : start + each] for start in range(0, len(ids), each)]
    _same_or_empty(out_dir, {"identity": identity, "shards": shards})
    for number, image_ids in enumerate(tqdm(shards, desc=f"features {item}", unit="shard", mininterval=5)):
        path = out_dir / _shard_name(number)
        if path.exists():
            continue
        rows = np.stack([_numpy(_encoded(encoder, tables, i)) for i in image_ids])
        with atomic_path(path) as aside:
            np.save(aside, rows)
    index = {"version": VERSION, "item": item, "dtype": run.models.features.dtype, "shape": list(first.shape)}
    # With the identity, so that rows of other weights make another file for those who read it.
    write_json(out_dir / "index.json", {**index, "identity": identity, "shards": shards})


def _same_or_empty(folder: Path, wanted: dict[str, object]) -> None:
    begun = folder / "begun.json"
    if begun.exists() and read_json(begun) == wanted:
        return
    for path in folder.glob("shard-*.npy"):
        path.unlink()
    write_json(begun, wanted)
