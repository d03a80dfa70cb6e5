"""The superpixel source contract.

A source turns an image into binary masks that may overlap and need not cover it. Sources are found
in the packages registered under the entry point group ``svp.superpixel_sources``; like projectors
they declare themselves in literal class attributes, which are read without importing them.
"""

from __future__ import annotations

import ast
import importlib
import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from PIL import Image, UnidentifiedImageError
from pydantic import BaseModel, ConfigDict

from harness.discovery import nearest

__all__ = [
    "SourceInfo",
    "SuperpixelConfig",
    "SuperpixelMasks",
    "SuperpixelSource",
    "find_sources",
    "load_source",
    "open_sam",
    "read_rgb",
]

GROUP = "svp.superpixel_sources"
_DECLARED = ("name", "reference", "needs_sam")
_SIXTEEN_BIT = ("I", "I;16", "I;16L", "I;16B", "I;16N")


@dataclass(frozen=True)
class SuperpixelMasks:
    """The superpixels of one image at its own resolution.

    Attributes:
        masks: ``[K, H, W]`` bool; may overlap, need not cover the image, none empty.
        scores: ``[K]`` float32, the source's confidence, 1 where it has none.
        levels: ``[K]`` int8: 0 sub-part, 1 part, 2 whole, as SAM orders its three masks; 2 elsewhere.
    """

    masks: np.ndarray
    scores: np.ndarray
    levels: np.ndarray

    def __post_init__(self) -> None:
        """Refuse arrays that do not belong together."""
        if self.masks.ndim != 3 or self.masks.dtype != bool:
            raise ValueError(
                f"superpixel masks must be bool [K, H, W], not {self.masks.dtype} {self.masks.shape}"
            )
        if not len(self.masks) == len(self.scores) == len(self.levels):
            raise ValueError(
                f"{len(self.masks)} masks, {len(self.scores)} scores, {len(self.levels)} levels: not one each"
            )

    @classmethod
    def of(cls, masks: np.ndarray) -> SuperpixelMasks:
        """Masks of a source without scores and levels; empty masks are left out."""
        masks = masks[masks.any(axis=(1, 2))]
        return cls(masks, np.ones(len(masks), np.float32), np.full(len(masks), 2, np.int8))

    @classmethod
    def of_labels(cls, labels: np.ndarray) -> SuperpixelMasks:
        """One mask for each value of a label map ``[H, W]``."""
        return cls.of(labels[None] == np.unique(labels)[:, None, None])


class SuperpixelConfig(BaseModel):
    """Base of every source's own options: unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SuperpixelSource:
    """Base of every superpixel source; subclasses set the class attributes as literals.

    Class attributes:
        name: the name used in config and manifests.
        reference: paper or repository of the algorithm.
        needs_sam: whether it is built with a SAM.
    """

    name: ClassVar[str]
    reference: ClassVar[str] = ""
    needs_sam: ClassVar[bool] = False

    class Config(SuperpixelConfig):
        """No options."""

    def __init__(self, config: SuperpixelConfig | None = None, sam: Any = None):
        """Keep the options and, where asked for, a ``segment_anything.modeling.Sam`` in eval mode.

        Raises:
            ValueError: the source needs a SAM and got none.
        """
        if self.needs_sam and sam is None:
            raise ValueError(f"superpixel source '{self.name}' needs a SAM; pass one")
        self.config: Any = config if config is not None else self.Config()
        self.sam = sam

    def generate(
        self, image: np.ndarray, *, image_id: int | None = None, sam_embedding: Any = None
    ) -> SuperpixelMasks:
        """The superpixels of one image.

        Args:
            image: ``[H, W, 3]`` uint8 RGB.
            image_id: the image's id, for sources that look annotations up.
            sam_embedding: ``[C, h, w]`` cached SAM embedding of the whole image, for sources that use SAM.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class SourceInfo:
    """A source's declaration, as written in its file (fields as the class attributes)."""

    name: str
    path: Path
    module: str
    class_name: str
    needs_sam: bool
    reference: str


def _declared(path: Path, module: str) -> Iterator[SourceInfo]:
    for node in ast.parse(path.read_text(), filename=str(path)).body:
        if not isinstance(node, ast.ClassDef):
            continue
        literals: dict[str, Any] = {}
        for item in node.body:
            target = item.targets[0] if isinstance(item, ast.Assign) else getattr(item, "target", None)
            if isinstance(target, ast.Name) and target.id in _DECLARED and getattr(item, "value", None):
                try:
                    literals[target.id] = ast.literal_eval(item.value)  # type: ignore[attr-defined]
                except ValueError as error:
                    raise ValueError(f"{path}: {node.name}.{target.id} must be a literal") from error
        if isinstance(literals.get("name"), str):
            yield SourceInfo(
                literals["name"],
                path,
                module,
                node.name,
                bool(literals.get("needs_sam", False)),
                str(literals.get("reference", "")),
            )


@cache
def _packages() -> tuple[str, ...]:
    return tuple(sorted({point.value for point in entry_points(group=GROUP)}))


def find_sources(*packages: str) -> dict[str, SourceInfo]:
    """Every superpixel source of ``packages`` (default: the registered ones), by name.

    Raises:
        ValueError: two files declare the same name, or an attribute is not a literal.
    """
    found: dict[str, SourceInfo] = {}
    for package in packages or _packages():
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec else ():
            for path in sorted(Path(folder).glob("*.py")):
                for info in _declared(path, f"{package}.{path.stem}"):
                    if info.name in found:
                        first = found[info.name].path
                        raise ValueError(f"superpixel source '{info.name}' is declared in {first} and {path}")
                    found[info.name] = info
    return found


def load_source(name: str, *packages: str) -> type[SuperpixelSource]:
    """Import the class of the source called ``name``.

    Raises:
        ValueError: there is none; the message names the nearest.
    """
    known = find_sources(*packages)
    if name not in known:
        raise ValueError(f"unknown superpixel source '{name}'{nearest(name, list(known))}")
    return getattr(importlib.import_module(known[name].module), known[name].class_name)


def open_sam(source: Path | str, kind: str = "tiny") -> Any:
    """A ``segment_anything`` SAM in evaluation mode, for sources that need one (imports torch)."""
    from harness.models.sam import load_sam

    return load_sam(source, kind)


def read_rgb(path: Path | str) -> np.ndarray:
    """An image file as ``[H, W, 3]`` uint8 RGB **in its stored pixel frame**.

    Grayscale is repeated over the channels, CMYK and palettes are converted, transparency is dropped,
    16 bits are scaled to 8. The EXIF orientation is not applied: COCO and REFER masks are drawn in the
    stored frame, and rotating the image would part it from them.

    Raises:
        ValueError: the file is missing, cut short or no image; the message names it.
    """
    try:
        with Image.open(path) as image:
            if image.mode in _SIXTEEN_BIT:
                gray = np.clip(np.asarray(image, dtype=np.int64) >> 8, 0, 255).astype(np.uint8)
                return np.repeat(gray[..., None], 3, axis=2)
            return np.array(image.convert("RGB"))
    except (OSError, UnidentifiedImageError, SyntaxError) as error:
        raise ValueError(f"image {path} cannot be read ({error}); fetch it again") from error
