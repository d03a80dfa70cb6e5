"""A scene laid out for the grammar's tests: who looks alike, who stands where, who stands out."""

from __future__ import annotations

import math
from collections.abc import Iterable
from itertools import combinations

from harness.data.scenes import Scene

__all__ = ["Keys", "SceneView", "bits", "rank_of"]

Keys = tuple[str, ...]

_KEYS = ("category", "color", "pattern", "size", "detail")
# What "left of" and "near" ask for, as shares of the image's side; the checker holds its own copy.
_MARGIN, _NEAR, _FAR = 0.06, 0.28, 0.40


class SceneView:
    """A scene laid out for quick tests: places and sizes as lists, sets of objects as bits of an int."""

    def __init__(self, scene: Scene):
        self.objects = scene.objects
        self.x = [o.center[0] / scene.width for o in scene.objects]
        self.y = [o.center[1] / scene.height for o in scene.objects]
        self.log_area = [math.log(o.area) for o in scene.objects]
        self.everything = (1 << len(scene.objects)) - 1
        self._same = {
            key: [
                bits(getattr(o, key) == getattr(thing, key) for o in scene.objects) for thing in scene.objects
            ]
            for key in _KEYS
        }
        self._unique: dict[int, list[tuple[Keys, float]]] = {}

    def sayable(self, index: int) -> Keys:
        """The keys of an object that have a word: medium size and no detail have none."""
        silent = {"medium", "none"}
        return tuple(k for k in _KEYS if getattr(self.objects[index], k) not in silent)

    def like(self, index: int, keys: Keys) -> int:
        """The objects that agree with ``index`` on ``keys``, as bits."""
        alike = self.everything
        for key in keys:
            alike &= self._same[key][index]
        return alike

    def unique_keys(self, index: int) -> list[tuple[Keys, float]]:
        """Sets of at most three keys that single an object out, with odds: short ones, with a noun, lead."""
        if index not in self._unique:
            found: list[tuple[Keys, float]] = []
            self._unique[index] = found
            for length in (1, 2, 3):
                for keys in combinations(self.sayable(index), length):
                    if self.like(index, keys).bit_count() == 1:
                        odds = (1.0, 3.0, 1.5)[length - 1] * (1.0 if "category" in keys else 0.4)
                        if any(set(k) < set(keys) for k, _ in found):
                            odds *= 0.3
                        found.append((keys, odds))
        return self._unique[index]

    def holds(self, thing: int, relation: str, anchor: int) -> bool | None:
        """Whether a relation to the anchor holds: True, False, or None where one cannot say."""
        dx, dy = self.x[anchor] - self.x[thing], self.y[anchor] - self.y[thing]
        if relation == "near":
            away = math.hypot(dx, dy)
            return True if away <= _NEAR else None if away < _FAR else False
        gap, aside = {"left": (dx, dy), "right": (-dx, dy), "above": (dy, dx), "below": (-dy, dx)}[relation]
        if gap >= _MARGIN and abs(aside) <= 1.5 * gap:
            return True
        return None if gap > 0 and abs(aside) < 3 * gap else False


def bits(flags: Iterable[bool]) -> int:
    """Flags as the bits of an int, the first lowest."""
    return sum(1 << i for i, flag in enumerate(flags) if flag)


def rank_of(scores: list[float], among: int, target: int, margin: float) -> int | None:
    """The rank of the target's score among ``among`` (0 lowest), or None if another is within the margin."""
    others = [s for i, s in enumerate(scores) if among >> i & 1 and i != target]
    if not others or min(abs(s - scores[target]) for s in others) < margin:
        return None
    return sum(s < scores[target] for s in others)
