"""The synthetic exam is as hard as it claims, says what its programs mean, and leaks only on purpose."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from harness.data.checker import difficulty, format_difficulty
from harness.data.expressions import KindBalance, describe, eligible, make_expressions
from harness.data.glyphs import CATEGORIES, FAMILY_A, FAMILY_B
from harness.data.options import ReferSet
from harness.data.phenomena import tag_phenomenon
from harness.data.prepare import prepare
from harness.data.refer import read_refer
from harness.data.scenes import COLORS, Scene, compose, named_generator
from harness.data.synthetic import generate, generate_pool
from harness.data.tables import check_leakage, load_tables, refuse_shared
from harness.data.wording import VOCABULARY
from harness.files import sha256_file

PLACE_WORDS = {
    "left", "right", "top", "bottom", "middle", "center", "corner", "upper", "lower", "far", "leftmost",
    "rightmost", "highest", "lowest", "second", "third", "side", "above", "below", "under", "over",
}  # fmt: skip


@pytest.fixture(scope="session")
def figures(synthetic):
    return difficulty(synthetic)


def decoded(row) -> np.ndarray:
    return coco_mask.decode({"size": [row.height, row.width], "counts": row.rle.encode()}).astype(bool)


def test_the_exam_is_not_easy(figures):
    data = figures["datasets"]
    assert data["synthref"]["val"]["images"] >= 200
    assert data["synthref"]["val"]["expressions"] >= 600
    for split in ("val", "testA", "testB"):
        assert 0.60 <= data["synthref"][split]["location"] <= 0.70
        assert data["synthref+"][split]["location"] == 0
    for splits in data.values():
        for row in splits.values():
            assert row["distractor"] >= 0.5
            assert row["target_area"][0] >= 0.01
            assert row["target_area"][-1] <= 0.15
            assert row["visible_fraction"][0] >= 0.6
    assert all(row["words"] > 8 and row["relation"] > 0.7 for row in data["synthrefg"].values())
    counts = list(figures["objects"].values())
    assert sorted(map(int, figures["objects"])) == list(range(3, 11))
    assert max(counts) <= 1.3 * min(counts)
    assert str(figures["checked"]) in format_difficulty(figures)


def test_figures_hold_on_masks_decoded_from_the_refer_files(synthetic):
    # The tables and scenes are left aside: areas and distractors straight from instances.json.
    data = read_refer(synthetic / "refer", "synthref", "synth")
    kin = Counter((a.image_id, a.category_id) for a in data.annotations.values())
    refs = data.of_split("val")
    for ref in refs:
        area = coco_mask.area(data.annotations[ref.ann_id].segmentation)
        assert 0.01 <= area / 96**2 <= 0.15
    distracted = [kin[r.image_id, data.annotations[r.ann_id].category_id] > 1 for r in refs]
    assert np.mean(distracted) >= 0.5
    located = [set(s.text.split()) & PLACE_WORDS for r in refs for s in r.sentences]
    assert 0.60 <= np.mean([bool(words) for words in located]) <= 0.70


def test_no_place_words_without_location(synthetic):
    data = read_refer(synthetic / "refer", "synthref+", "synth")
    assert not [s.text for r in data.refs for s in r.sentences if set(s.text.split()) & PLACE_WORDS]


def test_splits_and_families(synthetic):
    tables = load_tables(synthetic / "prepared")
    rows = tables.expressions
    splits = {d: set(g["split"]) for d, g in rows.groupby("dataset")}
    both = {"train", "val", "testA", "testB"}
    assert splits == {"synthref": both, "synthref+": both, "synthrefg": {"train", "val", "test"}}
    assert set(rows.query("split == 'testA'")["category"]) == set(FAMILY_A)
    assert set(rows.query("split == 'testB'")["category"]) == set(FAMILY_B)
    assert set(CATEGORIES) == {*FAMILY_A, *FAMILY_B} and len(CATEGORIES) >= 10
    val = rows.query("split == 'val'").groupby("dataset")["image_id"].agg(set)
    assert val["synthref"] == val["synthref+"] == val["synthrefg"]


def test_program_phenomenon_and_words_agree(synthetic):
    for line in map(json.loads, (synthetic / "refer" / "programs.jsonl").read_text().splitlines()):
        assert tag_phenomenon(line["sentence"]) == line["phenomenon"], line["sentence"]


SYNONYMS = {
    "figure": "person", "kitty": "cat", "insect": "bug", "mug": "cup", "dish": "plate", "crate": "box",
    "hoop": "ring", "pine": "tree", "flask": "bottle", "stripy": "striped", "speckled": "spotted",
    "checkered": "checked", "little": "small", "big": "large", "belt": "band",
}  # fmt: skip
SAID = {*CATEGORIES, *COLORS, "plain", "striped", "spotted", "checked", "small", "large", "dot", "band"}


def values(program):
    for step in program:
        if step["op"] == "filter":
            yield step["value"]
        elif step["op"] == "relate":
            yield from values(step["anchor"])


def test_sentences_say_what_programs_filter(synthetic):
    said_any = set()
    for line in map(json.loads, (synthetic / "refer" / "programs.jsonl").read_text().splitlines()):
        words = [SYNONYMS.get(w, w) for w in line["sentence"].split()]
        assert Counter(w for w in words if w in SAID) == Counter(values(line["program"])), line["sentence"]
        said_any |= set(line["sentence"].split())
        step = line["program"][-1]
        if step["op"] == "extreme" and step["axis"] == "x":
            side = {("low"): "left", ("high"): "right"}[step["end"]]
            assert (
                side in line["sentence"] and {"left": "right", "right": "left"}[side] not in line["sentence"]
            )
            assert ("second" in words, "third" in words) == (step["rank"] == 1, step["rank"] == 2)
        if step["op"] == "superlative":
            assert bool(re.search("biggest|largest", line["sentence"])) == (step["end"] == "high")
    assert said_any <= set(VOCABULARY) and len(VOCABULARY) <= 100


def test_masks_are_the_visible_pixels_and_disjoint(synthetic):
    tables = load_tables(synthetic / "prepared")
    for _, rows in list(tables.annotations.query("dataset == 'synthref'").groupby("image_id"))[:40]:
        masks = np.stack([decoded(r) for r in rows.itertuples()])
        assert masks.sum(axis=0).max() == 1
        for mask, row in zip(masks, rows.itertuples(), strict=True):
            ys, xs = np.nonzero(mask)
            assert (xs.min(), ys.min(), np.ptp(xs) + 1, np.ptp(ys) + 1) == (row.x, row.y, row.w, row.h)
            assert mask.sum() == row.area


def test_visible_masks_follow_the_drawing_order():
    for index in range(20):
        scene, placed, visible = compose(
            1, count=10, size=96, domain="shapes", family=None, rng=named_generator("order", index)
        )
        top = np.full((96, 96), -1)
        for z, item in enumerate(placed):
            top[item.full] = z
        for z, thing in enumerate(scene.objects):
            np.testing.assert_array_equal(visible[z], top == z)
            assert thing.visible_fraction == pytest.approx((top == z).sum() / placed[z].full.sum(), abs=1e-3)


def test_objects_are_seen_in_the_pixels(synthetic):
    # A plain object's pixels are nearer its own colour's than any other colour's: image and mask agree.
    wanted = {"red": (1, 0, 0), "green": (0, 1, 0), "blue": (0, 0, 1)}
    tables = load_tables(synthetic / "pool")
    right = []
    for row in tables.annotations.query("pattern == 'plain' and size == 'large'").itertuples():
        if row.color in wanted:
            pixels = np.asarray(Image.open(tables.image_path(row.image_id)))[decoded(row)]
            right.append(np.argmax(np.median(pixels, axis=0)) == np.argmax(wanted[row.color]))
    assert len(right) >= 3 and np.mean(right) == 1


def hashes(folder):
    return {p.relative_to(folder): sha256_file(p) for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_options):
    out = tmp_path_factory.mktemp("tiny")
    generate(tiny_options, out)
    return out


def test_same_seed_same_bytes(tmp_path, tiny, tiny_options):
    generate(tiny_options, tmp_path)
    assert hashes(tmp_path) == hashes(tiny)


def test_the_pool_hangs_on_nothing_of_the_splits(tmp_path, tiny_options):
    generate_pool(tiny_options, tmp_path / "a")
    generate_pool(
        tiny_options.model_copy(update={"train_images": 9, "overlap": 0.5}).pool_only(), tmp_path / "b"
    )
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_a_pool_that_shares_an_image_is_refused(synthetic):
    tables, pool = load_tables(synthetic / "prepared"), load_tables(synthetic / "pool")
    refuse_shared(tables, pool)
    images = pd.concat([pool.images, tables.images.head(2)], ignore_index=True)
    with pytest.raises(ValueError, match="shares 2 images"):
        refuse_shared(tables, replace(pool, images=images))


def test_another_seed_shares_no_image(tmp_path, tiny, tiny_options):
    generate(tiny_options.model_copy(update={"seed": 1}), tmp_path)
    first, other = (load_tables(p / "prepared").images["sha256"] for p in (tiny, tmp_path))
    assert not set(first) & set(other)


def test_default_has_no_leak(synthetic):
    tables, pool = load_tables(synthetic / "prepared"), load_tables(synthetic / "pool")
    assert check_leakage(tables).empty
    assert tables.images["sha256"].is_unique and pool.images["sha256"].is_unique
    assert not set(tables.images["sha256"]) & set(pool.images["sha256"])
    assert set(pool.expressions["split"]) == {"pool"}


@pytest.fixture(scope="session")
def leaking(tmp_path_factory, tiny_options):
    out = tmp_path_factory.mktemp("leaking")
    generate(tiny_options.model_copy(update={"overlap": 0.5}), out)
    return out


def test_overlap_leaks_half_by_id_half_by_bytes(leaking):
    leaks = check_leakage(load_tables(leaking / "prepared")).drop_duplicates("image_id")
    assert Counter(leaks["by"]) == {"image_id": 2, "sha256": 2}


def test_clean_pool_removes_the_leak(leaking, tmp_path, tiny_options):
    sets = [
        ReferSet(name=n, split_by="synth", splits=("train", "val"))
        for n in ("synthref", "synthref+", "synthrefg")
    ]
    prepare(leaking / "refer", sets, tmp_path, train_pool="clean", progress=False)
    tables = load_tables(tmp_path)
    assert check_leakage(tables).empty
    assert tables.summary["train_pool"]["dropped_images"] == 4
    assert len(tables.select("synthref", "train")["image_id"].unique()) == tiny_options.train_images


def test_pool_parts_lie_in_their_objects(synthetic):
    pool = load_tables(synthetic / "pool")
    parts = pd.read_parquet(synthetic / "pool" / "parts.parquet")
    objects = pool.annotations.set_index("ann_id")
    assert {"color", "pattern", "size"} <= set(objects.columns)
    assert {"handle", "eyes", "dot", "band"} <= set(parts["part"])
    for part in parts.itertuples():
        whole = decoded(objects.loc[part.ann_id])
        mask = decoded(part)
        assert 4 <= mask.sum() == part.area < whole.sum()
        assert not (mask & ~whole).any()


def test_scenes_survive_json_and_can_be_described(synthetic):
    rng = named_generator("describe")
    for line in (synthetic / "pool" / "scenes.jsonl").read_text().splitlines():
        scene = Scene.from_json(json.loads(line))
        assert scene.to_json() == json.loads(line, object_hook=_tuples)
        sentences = describe(scene)
        assert len(sentences) == len(scene.objects)
        assert {w for s in sentences for w in s.split()} <= set(VOCABULARY)
        for dataset in ("synthref", "synthref+", "synthrefg"):
            for expression in make_expressions(scene, dataset, rng, 4):
                index = [o.ann_id for o in scene.objects].index(expression.target)
                assert index in eligible(scene)


def _tuples(value):
    return {k: tuple(v) if k in ("box", "center") else v for k, v in value.items()}


def test_balance_reaches_its_share_though_scenes_refuse():
    rng, balance = named_generator("balance"), KindBalance(0.65)
    for _ in range(400):
        wanted = balance.wants_location(rng)
        balance.count("location" if wanted and rng.random() < 0.9 else "attribute")
    assert balance.located / balance.total == pytest.approx(0.65, abs=0.02)


def test_unknown_dataset_is_refused(synthetic):
    line = (synthetic / "pool" / "scenes.jsonl").read_text().splitlines()[0]
    with pytest.raises(ValueError, match="unknown synthetic dataset 'refcoco'"):
        make_expressions(Scene.from_json(json.loads(line)), "refcoco", named_generator(0), 1)


def test_domains_differ_in_look(tmp_path, tiny, tiny_options):
    generate(tiny_options.model_copy(update={"domain": "blobs"}), tmp_path)
    blobs, shapes = load_tables(tmp_path / "prepared"), load_tables(tiny / "prepared")

    def saturation(tables):
        paths = [tables.image_path(i) for i in tables.images["image_id"]]
        return np.mean([np.asarray(Image.open(p).convert("HSV"))[..., 1].mean() for p in paths])

    assert saturation(blobs) > 1.1 * saturation(shapes)


@pytest.mark.parametrize("size", [64, 160])
def test_objects_scale_with_the_image(size):
    scenes = [
        compose(1, count=6, size=s, domain="shapes", family=None, rng=named_generator("scale", s))[0]
        for s in [size] * 10
    ]
    shares = {
        kind: [o.full_area / size**2 for s in scenes for o in s.objects if o.size == kind]
        for kind in ("small", "medium", "large")
    }
    assert 0.010 < min(shares["small"]) and max(shares["small"]) < min(shares["medium"])
    assert max(shares["medium"]) < min(shares["large"]) and max(shares["large"]) < 0.11
