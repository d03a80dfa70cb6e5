"""The referee on scenes laid out by hand, its agreement with mirrored scenes, and faults it must catch."""

import json

import pytest

from harness.data.checker import AmbiguousExpressionError, check, evaluate, resolve

SIZE = 100
MIRROR = 96


def scene(*things):
    """A scene of ``(category, color, x, y, area)``, in percent of the side; ids count up from 0."""
    objects = [
        {
            "ann_id": i, "category": category, "color": color, "pattern": "plain", "size": "medium",
            "detail": "none", "center": [x, y], "area": area,
        }
        for i, (category, color, x, y, area) in enumerate(things)
    ]  # fmt: skip
    return {"image_id": 1, "width": SIZE, "height": SIZE, "objects": objects}


SCENE = scene(
    ("cup", "red", 15, 20, 300),
    ("cup", "blue", 40, 45, 200),
    ("cup", "red", 88, 80, 900),
    ("star", "red", 60, 20, 300),
    ("plate", "blue", 55, 52, 320),
)


def f(key, value):
    return {"op": "filter", "key": key, "value": value}


CUP, RED, STAR, PLATE = f("category", "cup"), f("color", "red"), f("category", "star"), f("category", "plate")


def extreme(axis, end, rank=0):
    return {"op": "extreme", "axis": axis, "end": end, "rank": rank}


def relate(relation, *anchor):
    return {"op": "relate", "relation": relation, "anchor": list(anchor)}


@pytest.mark.parametrize(
    ("program", "answer"),
    [
        ([STAR], 3),
        ([CUP, f("color", "blue")], 1),
        ([CUP, extreme("x", "low")], 0),
        ([CUP, extreme("x", "high")], 2),
        ([CUP, extreme("x", "low", 1)], 1),
        ([extreme("y", "high")], 2),
        ([RED, extreme("x", "low", 1)], 3),
        ([CUP, {"op": "corner", "x": "low", "y": "low"}], 0),
        ([{"op": "corner", "x": "high", "y": "high"}], 2),
        ([CUP, {"op": "middle"}], 1),
        ([CUP, {"op": "superlative", "end": "high"}], 2),
        ([CUP, {"op": "superlative", "end": "low"}], 1),
        ([CUP, relate("right", PLATE)], 2),
        ([CUP, relate("near", PLATE)], 1),
        ([RED, relate("above", CUP, f("color", "blue"))], None),
        ([PLATE, relate("below", STAR)], 4),
        ([CUP, relate("left", PLATE), relate("below", STAR)], 1),
        # Ambiguous, empty or too close to call:
        ([CUP], None),
        ([RED, STAR, CUP], None),
        ([extreme("y", "low")], None),
        ([CUP, {"op": "corner", "x": "high", "y": "low"}], None),
        ([{"op": "middle"}], None),
        ([{"op": "superlative", "end": "low"}, STAR], None),
        ([STAR, extreme("x", "low")], None),
        ([CUP, extreme("x", "low", 3)], None),
        ([CUP, relate("left", RED)], None),
    ],
)
def test_programs_on_a_known_scene(program, answer):
    if answer is None:
        with pytest.raises(AmbiguousExpressionError):
            resolve(program, SCENE)
    else:
        assert resolve(program, SCENE) == answer


@pytest.mark.parametrize(("gap", "clear"), [(4.0, False), (5.9, False), (6.1, True), (20.0, True)])
def test_a_place_must_hold_by_six_percent(gap, clear):
    pair = scene(("cup", "red", 30, 50, 300), ("cup", "red", 30 + gap, 50, 300))
    sure, maybe = evaluate([CUP, extreme("x", "low")], pair)
    assert (sure, maybe) == (({0}, {0}) if clear else (set(), {0, 1}))


def test_an_unsure_rival_of_a_relation_spoils_it():
    # Both are near enough to count, or the second too near to be ruled out.
    for distance, clear in ((20, False), (35, False), (45, True)):
        pair = scene(
            ("star", "red", 50, 50, 300), ("cup", "red", 50, 30, 300), ("cup", "red", 50, 50 + distance, 300)
        )
        if clear:
            assert resolve([CUP, relate("near", STAR)], pair) == 1
        else:
            with pytest.raises(AmbiguousExpressionError):
                resolve([CUP, relate("near", STAR)], pair)


def mirrored(value):
    """A program or scene with left and right swapped."""
    if isinstance(value, list):
        return [mirrored(v) for v in value]
    if not isinstance(value, dict):
        return {"left": "right", "right": "left"}.get(value, value)
    flip = {"low": "high", "high": "low"}
    if value.get("op") == "extreme" and value["axis"] == "x":
        return {**value, "end": flip[value["end"]]}
    if value.get("op") == "corner":
        return {**value, "x": flip[value["x"]]}
    if "center" in value:
        return {**value, "center": [MIRROR - value["center"][0], value["center"][1]]}
    return {k: mirrored(v) for k, v in value.items()}


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_every_program_survives_a_mirror(synthetic):
    scenes = {s["image_id"]: mirrored(s) for s in lines(synthetic / "refer" / "scenes.jsonl")}
    programs = lines(synthetic / "refer" / "programs.jsonl")[:1500]
    assert check(({**p, "program": mirrored(p["program"])} for p in programs), scenes) == 1500


def test_faulty_programs_are_caught(synthetic):
    scenes = {s["image_id"]: s for s in lines(synthetic / "refer" / "scenes.jsonl")}
    programs = [p for p in lines(synthetic / "refer" / "programs.jsonl") if p["dataset"] == "synthref"]
    turned = [p for p in programs if p["program"][-1]["op"] == "extreme" and p["program"][-1]["rank"] == 0]
    assert len(turned) > 100
    for line in turned[:100]:
        step = line["program"][-1]
        wrong = {**step, "end": "low" if step["end"] == "high" else "high"}
        with pytest.raises(AmbiguousExpressionError):
            check([{**line, "program": [*line["program"][:-1], wrong]}], scenes)
    for line in programs[:100]:
        others = [o["ann_id"] for o in scenes[line["image_id"]]["objects"] if o["ann_id"] != line["ann_id"]]
        with pytest.raises(AmbiguousExpressionError, match="not"):
            check([{**line, "ann_id": others[0]}], scenes)
