"""Writes synthetic referring scenes as REFER datasets, and reads them back as any dataset is read.

Three datasets share their images, as RefCOCO, RefCOCO+ and RefCOCOg share COCO's: ``synthref`` with place
words, ``synthref+`` without, ``synthrefg`` with long relational sentences. A pretraining pool has images
of its own. Every image follows from its name and the seed alone, so the same config gives the same bytes.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from harness.data.checker import check, difficulty
from harness.data.expressions import Expression, KindBalance, make_expressions
from harness.data.glyphs import FAMILY_A, FAMILY_B
from harness.data.options import SYNTHETIC_DATASETS, SYNTHETIC_SPLITS, ReferSet, SyntheticData
from harness.data.prepare import prepare
from harness.data.refer_writer import SPLIT_BY, ReferWriter, file_name, rle_counts, write_lines
from harness.data.render import part_masks, render
from harness.data.scenes import Scene, compose, named_generator
from harness.data.tables import load_tables, write_tables
from harness.files import write_json

__all__ = ["generate"]

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


_FAMILIES = {"testA": "A", "testB": "B"}
_SPLITS = tuple(_Split(name, datasets, _FAMILIES.get(name)) for name, datasets in SYNTHETIC_SPLITS.items())
_POOL = _Split("pool", SYNTHETIC_DATASETS)
_COPY_OFFSET = 700_000


@dataclass
class _Drawn:
    """An image with everything that is known of it; ``expressions`` by dataset."""

    scene: Scene
    pixels: np.ndarray
    masks: np.ndarray
    parts: list[tuple[int, str, np.ndarray]]
    expressions: dict[str, list[Expression]]


def generate(config: SyntheticData, out_dir: Path | str) -> dict[str, Any]:
    """Write the datasets (``refer/``) and their prepared tables (``prepared/``).

    Every expression is held against its scene by the checker before this returns.

    Args:
        config: what to write.
        out_dir: where.

    Returns:
        The difficulty figures, which also stand in ``prepared/difficulty.json``.

    Raises:
        AmbiguousExpressionError: an expression does not single out its target (a fault of the grammar).
    """
    out_dir = Path(out_dir)
    refer = out_dir / "refer"
    writers = {name: ReferWriter() for name in SYNTHETIC_DATASETS}
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
    write_lines(refer / "scenes.jsonl", (s.to_json() for s in scenes))
    write_lines(refer / "programs.jsonl", (p for w in writers.values() for p in w.programs))
    sets = [
        ReferSet(name=n, split_by=SPLIT_BY, splits=tuple(s.name for s in _SPLITS if n in s.datasets))
        for n in SYNTHETIC_DATASETS
    ]
    prepare(
        refer, sets, out_dir / "prepared", image_root="..", relative_to=out_dir, train_pool=config.train_pool
    )
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
    config: SyntheticData, drawn: _Drawn, number: int, writers: dict[str, ReferWriter], refer: Path
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


def generate_pool(config: SyntheticData, out_dir: Path | str) -> None:
    """Write the pretraining pool (``pool/``): images of no split, with every detail named.

    Args:
        config: of it, only what :meth:`SyntheticData.pool_only` keeps is read.
        out_dir: where; the folder may hold the splits too.
    """
    folder = Path(out_dir) / "pool"
    writer, scenes, parts = ReferWriter(), [], []
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
                    "rle": rle_counts(mask),
                    "height": mask.shape[0],
                    "width": mask.shape[1],
                }
            )
    writer.write(folder / "refer" / "pool")
    write_lines(folder / "scenes.jsonl", (s.to_json() for s in scenes))
    write_lines(folder / "programs.jsonl", writer.programs)
    check(writer.programs, {s.image_id: json.loads(json.dumps(s.to_json())) for s in scenes})
    sets = [ReferSet(name="pool", split_by=SPLIT_BY, splits=("pool",))]
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


def _save(drawn: _Drawn, folder: Path) -> None:
    # Not atomic, for speed: the prepared summary is written last and marks a finished set.
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(drawn.pixels).save(folder / file_name(drawn.scene.image_id), compress_level=1)
