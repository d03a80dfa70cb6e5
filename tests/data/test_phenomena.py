"""Phenomenon tags on sentences judged by hand, and their shares in the whole of RefCOCO's evaluation text."""

import json

import pytest

from harness.data.phenomena import tag_phenomenon


@pytest.mark.parametrize(
    ("sentence", "tag"),
    [
        ("left cup", "location"),
        ("Red cup on the RIGHT", "location"),
        ("second zebra from left", "location"),
        ("left of the picture", "location"),
        ("guy in front of us", "location"),
        ("woman in front", "location"),
        ("closest to us", "location"),
        ("cup left of the plate on the bottom", "location"),
        ("cup left of the plate", "relation"),
        ("the small red cup that is to the left of the striped plate", "relation"),
        ("man holding an umbrella", "relation"),
        ("dog next to the chair", "relation"),
        ("bus behind car", "relation"),
        ("red shirt", "attribute"),
        ("the biggest fish", "attribute"),
        ("overalls", "attribute"),
        ("leftover pizza", "attribute"),
        ("", "attribute"),
    ],
)
def test_tags(sentence, tag):
    assert tag_phenomenon(sentence) == tag


# Shares that a plain count of location words gives; phrases such as "left of the plate" make ours lower.
@pytest.mark.parametrize(
    ("split", "count", "share"), [("val", 10834, 65), ("testA", 5657, 53), ("testB", 5095, 78)]
)
def test_location_shares_of_refcoco(real_text, split, count, share):
    lines = (real_text / f"refcoco_unc_{split}.jsonl").read_text().splitlines()
    tags = [tag_phenomenon(json.loads(line)["sent"]) for line in lines]
    assert len(tags) == count
    assert 100 * tags.count("location") / count == pytest.approx(share, abs=3)
