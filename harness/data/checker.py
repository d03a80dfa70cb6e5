"""The referee: evaluates an expression's program on a scene, and measures how hard a data set is.

It shares no code with the grammar that wrote the expressions. Every test is three-valued: an object
surely fits, surely does not, or stands too close to the line to say; an expression passes only if one
object surely fits and no other object might.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from harness.data.phenomena import tag_phenomenon
from harness.data.tables import load_tables

__all__ = ["AmbiguousExpressionError", "check", "difficulty", "evaluate", "format_difficulty", "resolve"]

# Shares of the image's side.
_MARGIN = 0.06
_CORNER_MARGIN = 0.09
_MIDDLE_REACH = 0.25
_NEAR, _FAR = 0.28, 0.40
# Ratio of areas from which one object is visibly bigger.
_AREA_RATIO = 1.35
_AXES = {"left": (0, 1), "right": (0, -1), "above": (1, 1), "below": (1, -1)}

Program = list[dict[str, Any]]


class AmbiguousExpressionError(ValueError):
    """A program selects no object, several, or one only just."""


def evaluate(program: Program, scene: dict[str, Any]) -> tuple[set[int], set[int]]:
    """The objects that a program selects.

    Args:
        program: operations applied in order, each ``{"op": …}``: ``filter`` (key, value), ``extreme``
            (axis, end, rank), ``corner`` (x, y), ``middle``, ``superlative`` (end), ``relate`` (relation,
            anchor: a program).
        scene: a line of ``scenes.jsonl``.

    Returns:
        Annotation ids that surely fit, and those that might (the sure ones among them).

    Raises:
        ValueError: an operation is unknown.
        AmbiguousExpressionError: an anchor is not one object.
    """
    sure = {o["ann_id"] for o in scene["objects"]}
    maybe = set(sure)
    objects = {o["ann_id"]: _normalised(o, scene) for o in scene["objects"]}
    for step in program:
        match step:
            case {"op": "filter", "key": key, "value": value}:
                fits = {i for i, o in objects.items() if o[key] == value}
                sure, maybe = sure & fits, maybe & fits
            case {"op": "relate", "relation": relation, "anchor": anchor}:
                at = objects[resolve(anchor, scene)]
                verdicts = {i: _relates(objects[i], relation, at) for i in maybe}
                sure = {i for i in sure if verdicts[i] is True}
                maybe = {i for i in maybe if verdicts[i] is not False}
            case _:
                if sure != maybe:
                    raise AmbiguousExpressionError(f"{step['op']} ranks objects that are not surely selected")
                sure, maybe = _rank(step, {i: objects[i] for i in sure})
    return sure, maybe


def resolve(program: Program, scene: dict[str, Any]) -> int:
    """The one annotation id that a program selects.

    Raises:
        AmbiguousExpressionError: it is not exactly one object by a clear margin.
    """
    sure, maybe = evaluate(program, scene)
    if len(sure) != 1 or sure != maybe:
        raise AmbiguousExpressionError(
            f"{json.dumps(program)} surely selects {sorted(sure)} and perhaps {sorted(maybe)}"
        )
    return next(iter(sure))


def _normalised(thing: dict[str, Any], scene: dict[str, Any]) -> dict[str, Any]:
    x, y = thing["center"]
    return {**thing, "at": (x / scene["width"], y / scene["height"])}


def _relates(thing: dict[str, Any], relation: str, anchor: dict[str, Any]) -> bool | None:
    """True, False, or None where one cannot say."""
    if thing["ann_id"] == anchor["ann_id"]:
        return False
    if relation == "near":
        distance = math.dist(thing["at"], anchor["at"])
        return True if distance <= _NEAR else False if distance >= _FAR else None
    if relation not in _AXES:
        raise ValueError(f"unknown relation '{relation}'")
    axis, sign = _AXES[relation]
    gap = sign * (anchor["at"][axis] - thing["at"][axis])
    aside = abs(anchor["at"][1 - axis] - thing["at"][1 - axis])
    if gap >= _MARGIN and aside <= 1.5 * gap:
        return True
    return False if gap <= 0 or aside >= 3 * gap else None


def _rank(step: dict[str, Any], objects: dict[int, dict[str, Any]]) -> tuple[set[int], set[int]]:
    """The object that stands out among ``objects`` by a score; empty sets where there is none."""
    rank, margin = 0, _MARGIN
    match step:
        case {"op": "extreme", "axis": axis, "end": end, "rank": rank}:
            along, sign = "xy".index(axis), _sign(end)
            scores = {i: sign * o["at"][along] for i, o in objects.items()}
        case {"op": "corner", "x": x, "y": y}:
            signs, margin = (_sign(x), _sign(y)), _CORNER_MARGIN
            scores = {i: sum(s * c for s, c in zip(signs, o["at"], strict=True)) for i, o in objects.items()}
        case {"op": "middle"}:
            scores = {i: math.dist(o["at"], (0.5, 0.5)) for i, o in objects.items()}
        case {"op": "superlative", "end": end}:
            scores = {i: _sign(end) * math.log(o["area"]) for i, o in objects.items()}
            margin = math.log(_AREA_RATIO)
        case _:
            raise ValueError(f"unknown operation {step}")
    order = sorted(scores, key=lambda i: scores[i])
    if len(order) < 2 or rank >= len(order):
        return set(), set()
    chosen = order[rank]
    rivals = {i for i in order if i != chosen and abs(scores[i] - scores[chosen]) < margin}
    if step["op"] == "corner" and any(
        s * (c - 0.5) > -_MARGIN / 2 for s, c in zip(signs, objects[chosen]["at"], strict=True)
    ):
        return set(), set()
    if step["op"] == "middle" and scores[chosen] > _MIDDLE_REACH:
        return set(), set()
    return ({chosen} if not rivals else set()), {chosen, *rivals}


def _sign(end: str) -> int:
    return {"low": 1, "high": -1}[end]


def check(programs: Iterable[dict[str, Any]], scenes: dict[int, dict[str, Any]]) -> int:
    """Hold every program against its scene.

    Args:
        programs: lines of ``programs.jsonl``.
        scenes: lines of ``scenes.jsonl`` by image id.

    Returns:
        How many were checked.

    Raises:
        AmbiguousExpressionError: one does not select its target, and nothing else, by a clear margin.
    """
    count = 0
    for line in programs:
        found = resolve(line["program"], scenes[line["image_id"]])
        if found != line["ann_id"]:
            raise AmbiguousExpressionError(
                f"'{line['sentence']}' on image {line['image_id']} selects {found}, not {line['ann_id']}"
            )
        count += 1
    return count


def difficulty(out_dir: Path | str) -> dict[str, Any]:
    """How hard a synthetic data set is, from its prepared tables and scenes; every expression is checked.

    Args:
        out_dir: what ``generate`` wrote to.

    Returns:
        ``checked`` expressions; ``objects``: images by object count; ``datasets``: by dataset and split,
        images, expressions, ``location``, ``relation`` and ``attribute`` shares, share of targets with a
        distractor of their category, quantiles (0, .25, .5, .75, 1) of target area and visible fraction.

    Raises:
        AmbiguousExpressionError: an expression does not refer to exactly its target.
    """
    out_dir = Path(out_dir)
    tables = load_tables(out_dir / "prepared")
    scenes = {s["image_id"]: s for s in _lines(out_dir / "refer" / "scenes.jsonl")}
    checked = check(_lines(out_dir / "refer" / "programs.jsonl"), scenes)
    things = {o["ann_id"]: (o, s) for s in scenes.values() for o in s["objects"]}
    datasets: dict[str, dict[str, Any]] = {}
    for (dataset, split), rows in tables.expressions.groupby(["dataset", "split"], sort=True):
        targets = rows.drop_duplicates("ann_id")
        pairs = [things[i] for i in targets["ann_id"]]
        tags = rows["sentence"].map(tag_phenomenon).value_counts(normalize=True)
        datasets.setdefault(str(dataset), {})[str(split)] = {
            "images": int(rows["image_id"].nunique()),
            "expressions": len(rows),
            **{tag: round(float(tags.get(tag, 0.0)), 4) for tag in ("location", "relation", "attribute")},
            "distractor": round(float((targets["distractors"] > 0).mean()), 4),
            "words": round(float(np.mean([len(s.split()) for s in rows["sentence"]])), 2),
            "target_area": _quantiles([o["area"] / (s["width"] * s["height"]) for o, s in pairs]),
            "visible_fraction": _quantiles([o["visible_fraction"] for o, _ in pairs]),
        }
    counts = [len(s["objects"]) for s in scenes.values()]
    histogram = {str(n): counts.count(n) for n in sorted(set(counts))}
    return {"checked": checked, "objects": histogram, "datasets": datasets}


def format_difficulty(figures: dict[str, Any]) -> str:
    """The figures of :func:`difficulty` as a table to read."""
    lines = [
        f"{figures['checked']} expressions, each selects exactly one object by a clear margin",
        "images by object count: " + ", ".join(f"{n}: {c}" for n, c in figures["objects"].items()),
        f"{'':18}{'images':>7}{'expr.':>7}{'loc.':>7}{'rel.':>7}{'attr.':>7}{'distr.':>8}{'words':>7}"
        "   target area min/median/max    visible min/median",
    ]
    for dataset, splits in figures["datasets"].items():
        for split, row in splits.items():
            shares = "".join(f"{row[k]:7.2f}" for k in ("location", "relation", "attribute"))
            area, visible = row["target_area"], row["visible_fraction"]
            lines.append(
                f"{dataset + ' ' + split:18}{row['images']:7}{row['expressions']:7}{shares}"
                f"{row['distractor']:8.2f}{row['words']:7.1f}"
                f"   {area[0]:.3f} / {area[2]:.3f} / {area[4]:.3f}"
                f"          {visible[0]:.2f} / {visible[2]:.2f}"
            )
    return "\n".join(lines) + "\n"


def _quantiles(values: list[float]) -> list[float]:
    return [round(float(q), 4) for q in np.quantile(values, [0, 0.25, 0.5, 0.75, 1])]


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


if __name__ == "__main__":
    sys.stdout.write(format_difficulty(difficulty(sys.argv[1])))
