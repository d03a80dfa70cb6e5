"""English for the grammar's programs: a closed vocabulary of about a hundred lower-case words."""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.data.scenes import SceneObject

__all__ = [
    "RELATIONS",
    "VOCABULARY",
    "an",
    "noun_phrase",
    "place_phrase",
    "relation_phrase",
    "superlative_phrase",
]

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "category": {
        "person": ("person", "figure"), "cat": ("cat", "kitty"), "bird": ("bird",), "fish": ("fish",),
        "bug": ("bug", "insect"), "cup": ("cup", "mug"), "plate": ("plate", "dish"), "box": ("box", "crate"),
        "star": ("star",), "ring": ("ring", "hoop"), "tree": ("tree", "pine"), "bottle": ("bottle", "flask"),
    },
    "color": {c: (c,) for c in ("red", "yellow", "green", "blue", "purple", "white", "black")},
    "pattern": {
        "plain": ("plain",), "striped": ("striped", "stripy"), "spotted": ("spotted", "speckled"),
        "checked": ("checked", "checkered"),
    },
    "size": {"small": ("small", "little"), "large": ("large", "big")},
    "detail": {"dot": ("dot",), "band": ("band", "belt")},
}  # fmt: skip
_NOUNLESS = ("one", "thing", "object")
_SUPERLATIVES = {"low": ("smallest", "littlest"), "high": ("biggest", "largest")}
RELATIONS = {
    "left": ("left of", "to the left of", "on the left side of"),
    "right": ("right of", "to the right of", "on the right side of"),
    "above": ("above", "over"),
    "below": ("below", "under"),
    "near": ("next to", "near", "beside", "close to"),
}
_ORDINALS = {1: "second", 2: "third"}
# By axis and end: a word before the noun, a word for "on the …", and one-word superlatives.
_SIDES = {
    ("x", "low"): (("left",), ("on the left", "on left", "on the left side"), ("leftmost", "far left")),
    ("x", "high"): (
        ("right",),
        ("on the right", "on right", "on the right side"),
        ("rightmost", "far right"),
    ),
    ("y", "low"): (("top", "upper"), ("at the top", "on top", "at top"), ("highest",)),
    ("y", "high"): (("bottom", "lower"), ("at the bottom", "on the bottom", "at bottom"), ("lowest",)),
}
_DOWN = {"low": ("top", "upper"), "high": ("bottom", "lower")}
_ACROSS = {"low": "left", "high": "right"}
_GRAMMAR = "a an the and that is which standing with in of from middle center corner side"


def _all_words() -> tuple[str, ...]:
    phrases = [w for table in _WORDS.values() for words in table.values() for w in words]
    phrases += [
        *_NOUNLESS,
        *_ORDINALS.values(),
        _GRAMMAR,
        *sum(_SUPERLATIVES.values(), ()),
        *sum(RELATIONS.values(), ()),
    ]
    phrases += [w for groups in _SIDES.values() for group in groups for w in group]
    return tuple(sorted({word for phrase in phrases for word in phrase.split()}))


VOCABULARY = _all_words()
"""Every word the grammar can say, sorted."""


def _say(key: str, value: str, rng: np.random.Generator) -> str:
    words = _WORDS[key][value]
    # The plain name is the usual one, synonyms the rarer.
    return words[0] if len(words) == 1 or rng.random() < 0.6 else words[1]


def an(noun: str) -> str:
    """The noun phrase with ``a`` or ``an``."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def noun_phrase(thing: SceneObject, keys: tuple[str, ...], rng: np.random.Generator) -> str:
    """An object by some of its looks, such as ``small red cup with a dot``, without an article."""
    said = {key: _say(key, getattr(thing, key), rng) for key in keys}
    looks = [said[k] for k in ("pattern", "color") if k in said]
    if len(looks) == 2 and rng.random() < 0.5:
        looks.reverse()
    noun = said.get("category") or str(rng.choice(_NOUNLESS))
    words = [*([said["size"]] if "size" in said else []), *looks, noun]
    return " ".join(words) + (f" with a {said['detail']}" if "detail" in said else "")


def superlative_phrase(end: str, noun: str, rng: np.random.Generator) -> str:
    """``biggest cup``, ``smallest red thing``."""
    return f"{rng.choice(_SUPERLATIVES[end])} {noun}"


def relation_phrase(relation: str, rng: np.random.Generator) -> str:
    """A phrase such as ``to the left of`` or ``beside``."""
    return str(rng.choice(RELATIONS[relation]))


def place_phrase(step: dict[str, Any], noun: str, at: tuple[float, float], rng: np.random.Generator) -> str:
    """A noun phrase with a place, such as ``left cup`` or ``cup in the top left``.

    Args:
        step: an ``extreme``, ``corner`` or ``middle`` operation.
        noun: the noun phrase.
        at: the target's ``x, y`` as shares of the image: ``on the left`` is only said of its left half.
        rng: source of randomness.
    """
    if step["op"] == "middle":
        forms = [f"{noun} in the middle", f"middle {noun}", f"center {noun}", f"{noun} in the center"]
    elif step["op"] == "corner":
        down, across = str(rng.choice(_DOWN[step["y"]])), _ACROSS[step["x"]]
        forms = [f"{down} {across} {noun}", f"{noun} in the {down} {across}",
                 f"{noun} in the {down} {across} corner", f"{noun} {down} {across}"]  # fmt: skip
    elif step["rank"]:
        side = _ACROSS[step["end"]]
        forms = [f"{_ORDINALS[step['rank']]} {noun} from the {side}",
                 f"{_ORDINALS[step['rank']]} {noun} from {side}"]  # fmt: skip
    else:
        before, after, utmost = _SIDES[step["axis"], step["end"]]
        along = at[step["axis"] == "y"]
        forms = [f"{rng.choice(before)} {noun}", f"{rng.choice(utmost)} {noun}"]
        if (along < 0.5) == (step["end"] == "low"):
            forms += [
                f"{noun} {rng.choice(after)}",
                f"{rng.choice(before)} {noun}",
                f"{noun} {rng.choice(after)}",
            ]
    return str(rng.choice(forms))
