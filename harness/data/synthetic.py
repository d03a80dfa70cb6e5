"""Writes synthetic referring scenes as REFER datasets, and reads them back as any dataset is read.

Three datasets share their images, as RefCOCO, RefCOCO+ and RefCOCOg share COCO's: ``synthref`` with place
words, ``synthref+`` without, ``synthrefg`` with long relational sentences. A pretraining pool has images
of its own. Every image follows from its name and the seed alone, so the same config gives the same bytes.
"""

from __future__ import annotations

import copy
import json
import pickle
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from pycocotools import mask as coco_mask
from tqdm import tqdm

from harness.data.checker import check, difficulty
from harness.data.expressions import DATASETS, Expression, KindBalance, make_expressions
from harness.data.glyphs import CATEGORIES, FAMILY_A, FAMILY_B
from harness.data.options import ReferSet, SyntheticData
from harness.data.prepare import prepare
from harness.data.render import part_masks, render
from harness.data.scenes import Scene, compose, named_generator
from harness.data.tables import load_tables, write_tables
from harness.files import atomic_path, write_json

__all__ = ["generate"]

_SPLIT_BY = "synth"
_MOST_ATTEMPTS = 200


@dataclass(frozen=True)
class _Split:
    name: str
    datasets: tuple[str, ...]
    family: str | None = None

    @property
    def categories(self) -> tuple[str, ...] | None:
        """The categories that targets may have."""
        return {"A": FAMILY_A, "B": FAMILY_B, None: None}[self.family]

    @property
    def first_id(self) -> int:
        """Image ids of a split count up from here."""
        return 100_000 * (1 + [s.name for s in (*_SPLITS, _POOL)].index(self.name))


_SPLITS = (
    _Split("train", DATASETS),
    _Split("val", DATASETS),
    _Split("testA", DATASETS[:2], "A"),
    _Split("testB", DATASETS[:2], "B"),
    _Split("test", DATASETS[2:]),
)
_POOL = _Split("pool", DATASETS)
_COPY_OFFSET = 700_000


@dataclass
class _Drawn:
    """An image with everything that is known of it; ``expressions`` by dataset."""

    scene: Scene
    pixels: np.ndarray
    masks: np.ndarray
    parts: list[tuple[int, str, np.ndarray]]
    expressions: dict[str, list[Expression]]


@dataclass
class _Writer:
    """Collects what a dataset's REFER files will hold."""

    refs: list[dict[str, Any]] = field(default_factory=list)
    images: dict[int, dict[str, Any]] = field(default_factory=dict)
    annotations: dict[int, dict[str, Any]] = field(default_factory=dict)
    programs: list[dict[str, Any]] = field(default_factory=list)
    sentences: int = 0

    def add_image(self, scene: Scene, masks: np.ndarray) -> None:
        """List an image and all its objects."""
        name = _file_name(scene.image_id)
        self.images[scene.image_id] = {
            "id": scene.image_id, "file_name": name, "width": scene.width, "height": scene.height
        }  # fmt: skip
        for thing, mask in zip(scene.objects, masks, strict=True):
            self.annotations[thing.ann_id] = {
                "id": thing.ann_id,
                "image_id": scene.image_id,
                "category_id": CATEGORIES.index(thing.category) + 1,
                "bbox": [float(v) for v in thing.box],
                "area": float(thing.area),
                "iscrowd": 0,
                "segmentation": {"size": [scene.height, scene.width], "counts": _counts(mask)},
            }

    def add_refs(self, scene: Scene, split: str, dataset: str, expressions: Iterable[Expression]) -> None:
        """Add expressions, one ref a target."""
        by_target: dict[int, list[Expression]] = {}
        for expression in expressions:
            by_target.setdefault(expression.target, []).append(expression)
        for ann_id, group in by_target.items():
            sentences = []
            for expression in group:
                self.sentences += 1
                text = expression.sentence
                sentences.append(
                    {"sent_id": self.sentences, "sent": text, "raw": text, "tokens": text.split()}
                )
                line = {"dataset": dataset, "sent_id": self.sentences, "image_id": scene.image_id}
                line |= {"ann_id": ann_id, "phenomenon": expression.phenomenon}
                self.programs.append({**line, "sentence": text, "program": expression.program})
            self.refs.append(
                {
                    "ref_id": len(self.refs) + 1,
                    "ann_id": ann_id,
                    "image_id": scene.image_id,
                    "category_id": self.annotations[ann_id]["category_id"],
                    "split": split,
                    "file_name": f"{Path(_file_name(scene.image_id)).stem}_{ann_id}.png",
                    "sent_ids": [s["sent_id"] for s in sentences],
                    "sentences": sentences,
                }
            )

    def write(self, folder: Path) -> None:
        """Write ``refs(synth).p`` (protocol 2, as REFER's own) and ``instances.json``."""
        with atomic_path(folder / f"refs({_SPLIT_BY}).p") as aside:
            aside.write_bytes(pickle.dumps(self.refs, protocol=2))
        categories = [
            {"id": i, "name": name, "supercategory": "animate" if name in FAMILY_A else "thing"}
            for i, name in enumerate(CATEGORIES, start=1)
        ]
        content = {
            "info": {"description": "synthetic referring scenes"},
            "images": list(self.images.values()),
            "annotations": list(self.annotations.values()),
            "categories": categories,
        }
        with atomic_path(folder / "instances.json") as aside:
            aside.write_text(json.dumps(content))


def generate(config: SyntheticData, out_dir: Path | str) -> dict[str, Any]:
    """Write the datasets (``refer/``), their prepared tables (``prepared/``) and the pool (``pool/``).

    Every expression is held against its scene by the checker before this returns.

    Args:
        config: what to write.
        out_dir: where.

    Returns:
        The difficulty figures, which also stand in ``prepared/difficulty.json``.

    Raises:
        AmbiguousExpressionError: an expression does not single out its target (a fault of the grammar).
        ValueError: the pool shares an image with a split.
    """
    out_dir = Path(out_dir)
    refer = out_dir / "refer"
    writers = {name: _Writer() for name in DATASETS}
    scenes: list[Scene] = []
    for split in _SPLITS:
        drawn_split = _draw_split(config, split)
        for number, drawn in enumerate(drawn_split):
            scenes.append(drawn.scene)
            _save(drawn, refer / "images" / split.name)
            for name, expressions in drawn.expressions.items():
                writers[name].add_image(drawn.scene, drawn.masks)
                writers[name].add_refs(drawn.scene, split.name, name, expressions)
            # Leaks are spread evenly over val; round() keeps their number exact.
            leaks = [round(config.overlap * n) for n in (number, number + 1)]
            if split.name == "val" and leaks[0] != leaks[1]:
                scenes += _leak(config, drawn, leaks[1], writers, refer)
    for name, writer in writers.items():
        writer.write(refer / name)
    _write_lines(refer / "scenes.jsonl", (s.to_json() for s in scenes))
    _write_lines(refer / "programs.jsonl", (p for w in writers.values() for p in w.programs))
    sets = [
        ReferSet(name=n, split_by=_SPLIT_BY, splits=tuple(s.name for s in _SPLITS if n in s.datasets))
        for n in DATASETS
    ]
    prepare(
        refer, sets, out_dir / "prepared", image_root="..", relative_to=out_dir, train_pool=config.train_pool
    )
    _write_pool(config, out_dir / "pool")
    _refuse_shared(out_dir)
    figures = difficulty(out_dir)
    write_json(out_dir / "prepared" / "difficulty.json", figures)
    return figures


def _draw_split(config: SyntheticData, split: _Split) -> Iterable[_Drawn]:
    count = getattr(config, f"{split.name}_images")
    low, high = config.objects
    counts = np.arange(count) % (high - low + 1) + low
    counts = named_generator(config.seed, config.domain, split.name, "counts").permutation(counts)
    balances = {d: KindBalance(config.location_share if d == "synthref" else 0.0) for d in split.datasets}
    for index in tqdm(range(count), desc=f"scenes of {split.name}", unit="image"):
        yield _draw(config, split, index, int(counts[index]), balances)


def _draw(
    config: SyntheticData, split: _Split, index: int, objects: int, balances: dict[str, KindBalance]
) -> _Drawn:
    """The first scene, over seeded attempts, that bears the wanted expressions for all datasets."""
    wanted = config.train_expressions if split.name in ("train", "pool") else config.eval_expressions
    image_id = split.first_id + index + 1
    for attempt in range(_MOST_ATTEMPTS):
        rng = named_generator(config.seed, config.domain, config.image_size, split.name, index, attempt)
        scene, placed, masks = compose(
            image_id,
            count=objects,
            size=config.image_size,
            domain=config.domain,
            family=split.family,
            rng=rng,
        )
        tried = copy.deepcopy(balances)
        made = {}
        for name in split.datasets:
            count = int(rng.integers(wanted[0], wanted[1] + 1))
            made[name] = make_expressions(
                scene, name, rng, count, balance=tried[name], categories=split.categories
            )
            if len(made[name]) < count:
                break
        else:
            balances.update(tried)
            pixels = render(placed, config.image_size, config.domain, rng)
            return _Drawn(scene, pixels, masks, part_masks(placed, masks), made)
    raise ValueError(
        f"no scene of {objects} objects bears {wanted[1]} expressions in {_MOST_ATTEMPTS} attempts;"
        " ask for fewer expressions or more objects"
    )


def _leak(
    config: SyntheticData, drawn: _Drawn, number: int, writers: dict[str, _Writer], refer: Path
) -> list[Scene]:
    """Put a val image in train on purpose: odd ones under their own id, even ones as a renamed copy."""
    scene, added = drawn.scene, []
    if number % 2 == 0:
        image_id = scene.image_id + _COPY_OFFSET
        objects = tuple(replace(o, ann_id=image_id * 100 + o.z) for o in scene.objects)
        scene = replace(scene, image_id=image_id, objects=objects)
        added.append(scene)
        _save(replace(drawn, scene=scene), refer / "images" / "train")
    rng = named_generator(config.seed, config.domain, "overlap", scene.image_id)
    for name, writer in writers.items():
        writer.add_image(scene, drawn.masks)
        writer.add_refs(scene, "train", name, make_expressions(scene, name, rng, config.train_expressions[0]))
    return added


def _write_pool(config: SyntheticData, folder: Path) -> None:
    writer, scenes, parts = _Writer(), [], []
    for drawn in _draw_split(config, _POOL):
        scenes.append(drawn.scene)
        _save(drawn, folder / "images")
        writer.add_image(drawn.scene, drawn.masks)
        for name, expressions in drawn.expressions.items():
            # A target may be spoken of in several datasets: one ref for each.
            writer.add_refs(drawn.scene, "pool", name, expressions)
        for index, name, mask in drawn.parts:
            parts.append(
                {
                    "image_id": drawn.scene.image_id,
                    "ann_id": drawn.scene.objects[index].ann_id,
                    "part": name,
                    "area": int(mask.sum()),
                    "rle": _counts(mask),
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                }
            )
    writer.write(folder / "refer" / "pool")
    _write_lines(folder / "scenes.jsonl", (s.to_json() for s in scenes))
    _write_lines(folder / "programs.jsonl", writer.programs)
    check(writer.programs, {s.image_id: json.loads(json.dumps(s.to_json())) for s in scenes})
    sets = [ReferSet(name="pool", split_by=_SPLIT_BY, splits=("pool",))]
    summary = prepare(
        folder / "refer", sets, folder, image_dir="../images", image_root="..", relative_to=folder.parent
    )
    tables = load_tables(folder)
    looks = pd.DataFrame(
        {"ann_id": o.ann_id, "color": o.color, "pattern": o.pattern, "size": o.size}
        for s in scenes
        for o in s.objects
    )
    annotations = tables.annotations.merge(looks, on="ann_id", validate="one_to_one")
    write_tables(folder, {"annotations": annotations, "parts": pd.DataFrame(parts)}, summary)


def _refuse_shared(out_dir: Path) -> None:
    main = load_tables(out_dir / "prepared").images
    pool = load_tables(out_dir / "pool").images
    shared = set(main["sha256"]) & set(pool["sha256"])
    if shared:
        raise ValueError(f"{out_dir}/pool shares {len(shared)} images with a split; choose another seed")


def _file_name(image_id: int) -> str:
    return f"scene_{image_id}.png"


def _counts(mask: np.ndarray) -> str:
    return coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))["counts"].decode("ascii")


def _save(drawn: _Drawn, folder: Path) -> None:
    # Not atomic, for speed: the prepared summary is written last and marks a finished set.
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn.pixels).save(folder / _file_name(drawn.scene.image_id))


def _write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    with atomic_path(path) as aside, aside.open("w") as stream:
        for line in lines:
            stream.write(json.dumps(line) + "\n")
