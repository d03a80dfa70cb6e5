"""The grammar of synthetic referring expressions: a program that picks an object, and its English.

A program is a list of JSON-able operations (``harness.data.checker.evaluate`` says what they mean).
The grammar finds, for a target, every operation that singles it out, and draws one; the checker then
evaluates the program on its own.
"""

from __future__ import annotations

import math
from bisect import bisect
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import accumulate, chain, combinations
from typing import Any

import numpy as np

from harness.data.options import SYNTHETIC_DATASETS
from harness.data.scenes import Scene, SceneObject
from harness.data.view import Keys, SceneView, bits, rank_of
from harness.data.wording import RELATIONS, an, noun_phrase, place_phrase, relation_phrase, superlative_phrase

__all__ = ["Expression", "KindBalance", "describe", "eligible", "make_expressions"]

# How clear a place or a size must be; the checker holds its own copy of these.
_MARGIN, _CORNER_MARGIN, _MIDDLE_REACH = 0.06, 0.09, 0.25
_AREA_STEP = float(np.log(1.35))

_TARGET_AREA = (0.01, 0.15)
_TARGET_VISIBLE = 0.6
_MOST_PER_TARGET = 3
# How much likelier an object with a distractor of its category is to be a target.
_DISTRACTED = 1.5

# Keys a place word is put on, and how often.
_PLACED_KEYS = {
    ("category",): 5.0,
    ("category", "color"): 2.0,
    ("category", "pattern"): 0.8,
    ("category", "size"): 0.8,
    ("color",): 0.6,
    (): 0.8,
}
_PLACE_ODDS = {"x": 4.0, "y": 2.0, "corner": 2.0, "rank": 1.0, "middle": 1.5}

Program = list[dict[str, Any]]


@dataclass(frozen=True)
class Expression:
    """A referring expression.

    Attributes:
        sentence: lower case English.
        program: what it means.
        target: annotation id of the object it refers to.
        phenomenon: ``location``, ``relation`` or ``attribute``.
    """

    sentence: str
    program: Program
    target: int
    phenomenon: str


class KindBalance:
    """Keeps the share of location expressions at a wanted value, whatever single scenes allow."""

    def __init__(self, share: float):
        self.share = share
        self.located = 0
        self.total = 0

    def wants_location(self, rng: np.random.Generator) -> bool:
        """Whether the next expression should be a location one."""
        owed = self.share * (self.total + 1) - self.located
        return bool(rng.random() < np.clip(owed, 0, 1)) if 0 < self.share < 1 else self.share >= 1

    def count(self, phenomenon: str) -> None:
        """Note an expression that was made."""
        self.total += 1
        self.located += phenomenon == "location"


def _filters(thing: SceneObject, keys: Keys) -> Program:
    return [{"op": "filter", "key": k, "value": getattr(thing, k)} for k in keys]


def _pick(options: list[Any], odds: list[float], rng: np.random.Generator) -> Any:
    heaps = list(accumulate(odds))
    return options[bisect(heaps, rng.random() * heaps[-1], hi=len(heaps) - 1)]


def _place_steps(view: SceneView, t: int, among: int) -> Iterator[tuple[dict[str, Any], float]]:
    """Place operations that single the target out, with odds."""
    count = among.bit_count()
    for axis, values in (("x", view.x), ("y", view.y)):
        rank = rank_of(values, among, t, _MARGIN)
        if rank is None:
            continue
        for end, place in (("low", rank), ("high", count - 1 - rank)):
            if place == 0:
                yield {"op": "extreme", "axis": axis, "end": end, "rank": 0}, _PLACE_ODDS[axis]
            elif place in (1, 2) and axis == "x" and count > place + 1:
                yield {"op": "extreme", "axis": "x", "end": end, "rank": place}, _PLACE_ODDS["rank"]
    for ends in (("low", "low"), ("high", "low"), ("low", "high"), ("high", "high")):
        sx, sy = (1 if e == "low" else -1 for e in ends)
        inside = max(sx * (view.x[t] - 0.5), sy * (view.y[t] - 0.5)) <= -_MARGIN / 2
        slope = [sx * x + sy * y for x, y in zip(view.x, view.y, strict=True)]
        if inside and rank_of(slope, among, t, _CORNER_MARGIN) == 0:
            yield {"op": "corner", "x": ends[0], "y": ends[1]}, _PLACE_ODDS["corner"]
    away = [math.hypot(x - 0.5, y - 0.5) for x, y in zip(view.x, view.y, strict=True)]
    if away[t] <= _MIDDLE_REACH and rank_of(away, among, t, _MARGIN) == 0:
        yield {"op": "middle"}, _PLACE_ODDS["middle"]


def _location(view: SceneView, t: int, rng: np.random.Generator) -> Expression | None:
    thing, options, odds = view.objects[t], [], []
    sayable = view.sayable(t)
    for keys, often in _PLACED_KEYS.items():
        if not set(keys) <= set(sayable):
            continue
        among = view.like(t, keys)
        for step, weight in _place_steps(view, t, among):
            options.append((keys, step))
            odds.append(weight * often)
    if not options:
        return None
    keys, step = _pick(options, odds, rng)
    noun = noun_phrase(thing, keys, rng)
    sentence = place_phrase(step, noun, (view.x[t], view.y[t]), rng)
    return Expression(sentence, [*_filters(thing, keys), step], thing.ann_id, "location")


def _attribute(view: SceneView, t: int, rng: np.random.Generator, long: bool) -> Expression | None:
    thing, odds = view.objects[t], []
    options: list[tuple[Keys, str | None]] = []
    for keys, often in view.unique_keys(t):
        options.append((keys, None))
        # Long sentences say more than they must, as RefCOCOg's do.
        odds.append(often if not long else often * (1, 3, 20)[len(keys) - 1] * ("category" in keys))
    for keys in ((), ("category",), ("color",), ("category", "color"), ("category", "pattern")):
        among = view.like(t, keys)
        rank = rank_of(view.log_area, among, t, _AREA_STEP)
        if rank is not None and rank in (0, among.bit_count() - 1):
            options.append((keys, "low" if rank == 0 else "high"))
            odds.append((0.4, 1.2)["category" in keys] * (0.3 if long and len(keys) < 2 else 1.0))
    if sum(odds) == 0:
        return None
    keys, end = _pick(options, odds, rng)
    noun = noun_phrase(thing, keys, rng)
    program = _filters(thing, keys)
    if end:
        noun, program = superlative_phrase(end, noun, rng), [*program, {"op": "superlative", "end": end}]
    sentence = f"the {noun}" if long or (end and rng.random() < 0.3) else noun
    return Expression(sentence, program, thing.ann_id, "attribute")


def _relation(view: SceneView, t: int, rng: np.random.Generator) -> Expression | None:
    thing = view.objects[t]
    # Every relation that surely holds of the target: (relation, anchor, who else might).
    held, places = [], range(len(view.objects))
    for anchor in places:
        names = [(k, w) for k, w in view.unique_keys(anchor) if "category" in k] if anchor != t else []
        if names:
            keys = _pick([k for k, _ in names], [w for _, w in names], rng)
            for relation in RELATIONS:
                if view.holds(t, relation, anchor):
                    others = (i != anchor and view.holds(i, relation, anchor) is not False for i in places)
                    held.append((relation, anchor, keys, bits(others)))
    options: list[tuple[Keys, tuple[Any, ...]]] = []
    odds: list[float] = []
    sayable = [k for k in view.sayable(t) if k != "category"]
    for extra in chain.from_iterable(combinations(sayable, n) for n in (0, 1, 2)):
        keys = ("category", *extra)
        among = view.like(t, keys)
        often = (3.0 if among.bit_count() > 1 else 0.5) * (0.6, 1.0, 0.8)[len(keys) - 1]
        for first in held:
            if (among & first[3]).bit_count() == 1:
                options.append((keys, (first,)))
                odds.append(often)
        for first, second in combinations(held, 2) if len(held) < 8 else ():
            alone = (among & first[3]).bit_count() == 1 or (among & second[3]).bit_count() == 1
            if first[1] != second[1] and not alone and (among & first[3] & second[3]).bit_count() == 1:
                options.append((keys, (first, second)))
                odds.append(often * 0.4)
    if not options:
        return None
    keys, relations = _pick(options, odds, rng)
    program, clauses = _filters(thing, keys), []
    for relation, anchor, anchor_keys, _ in relations:
        at = view.objects[anchor]
        program.append({"op": "relate", "relation": relation, "anchor": _filters(at, anchor_keys)})
        clauses.append(f"{relation_phrase(relation, rng)} the {noun_phrase(at, anchor_keys, rng)}")
    noun = noun_phrase(thing, keys, rng)
    start = an(noun) if rng.random() < 0.2 else f"the {noun}"
    link = rng.choice(["", " that is", " which is", " standing"])
    sentence = f"{start}{link} {' and '.join(clauses)}"
    return Expression(sentence, program, thing.ann_id, "relation")


def eligible(scene: Scene, categories: tuple[str, ...] | None = None) -> list[int]:
    """Indices of the objects that may be targets: 1–15 % of the image, at least 60 % visible.

    Args:
        scene: the scene.
        categories: only these, where given.
    """
    low, high = (share * scene.width * scene.height for share in _TARGET_AREA)
    return [
        i
        for i, o in enumerate(scene.objects)
        if low <= o.area <= high
        and o.visible_fraction >= _TARGET_VISIBLE
        and (categories is None or o.category in categories)
    ]


def make_expressions(
    scene: Scene,
    dataset: str,
    rng: np.random.Generator,
    count: int,
    *,
    balance: KindBalance | None = None,
    categories: tuple[str, ...] | None = None,
) -> list[Expression]:
    """Expressions for a scene, one to three a target, targets one after another.

    Args:
        scene: the scene.
        dataset: ``synthref`` (mostly location words), ``synthref+`` (none), ``synthrefg`` (long, relational).
        rng: source of randomness.
        count: how many are wanted; fewer come back where the scene does not allow them.
        balance: keeps synthref's share of location expressions over many scenes.
        categories: targets are of these categories only.

    Raises:
        ValueError: the dataset is unknown.
    """
    if dataset not in SYNTHETIC_DATASETS:
        raise ValueError(f"unknown synthetic dataset '{dataset}'; known: {', '.join(SYNTHETIC_DATASETS)}")
    balance = balance or KindBalance(0.65 if dataset == "synthref" else 0.0)
    targets = eligible(scene, categories)
    names = [o.category for o in scene.objects]
    odds = np.array([_DISTRACTED if names.count(names[i]) > 1 else 1.0 for i in targets])
    made: list[Expression] = []
    if not targets:
        return made
    order = rng.choice(targets, size=len(targets), replace=False, p=odds / odds.sum())
    spread = max(2, min(_MOST_PER_TARGET, -(-count // 2)))
    view = SceneView(scene)
    for index in order:
        share = min(int(rng.integers(1, spread + 1)) if len(targets) > 1 else count, _MOST_PER_TARGET)
        said: set[str] = set()
        for _ in range(3 * share):
            if len(said) == share or len(made) == count:
                break
            expression = _make(view, int(index), dataset, balance, rng)
            if expression is not None and expression.sentence not in said:
                said.add(expression.sentence)
                made.append(expression)
                balance.count(expression.phenomenon)
        if len(made) == count:
            break
    return made


def _make(
    view: SceneView, t: int, dataset: str, balance: KindBalance, rng: np.random.Generator
) -> Expression | None:
    if dataset == "synthrefg":
        first = _relation(view, t, rng) if rng.random() < 0.85 else None
        return first or _attribute(view, t, rng, long=True)
    if dataset == "synthref" and balance.wants_location(rng):
        return _location(view, t, rng) or _attribute(view, t, rng, long=False)
    return _attribute(view, t, rng, long=False) or (
        _location(view, t, rng) if dataset == "synthref" else None
    )


def describe(scene: Scene) -> list[str]:
    """One sentence an object, in reading order: looks and rough place. For pretraining text."""
    rows = {"top": [], "middle": [], "bottom": []}  # type: dict[str, list[tuple[float, str]]]
    for thing in scene.objects:
        x, y = thing.center[0] / scene.width, thing.center[1] / scene.height
        across = "left" if x < 0.4 else "right" if x > 0.6 else ""
        down = "top" if y < 0.4 else "bottom" if y > 0.6 else ""
        if across and down:
            place = f"in the {down} {across}"
        elif across:
            place = f"on the {across}"
        else:
            place = f"at the {down}" if down else "in the middle"
        size = f"{thing.size} " if thing.size != "medium" else ""
        looks = f"{size}{thing.pattern} {thing.color} {thing.category}"
        detail = f" with a {thing.detail}" if thing.detail != "none" else ""
        rows[down or "middle"].append((x, f"a {looks}{detail} {place}"))
    return [sentence for row in rows.values() for _, sentence in sorted(row)]
