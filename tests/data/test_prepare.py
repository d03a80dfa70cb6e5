"""The prepare stage: exact counts, clean pools, and refusals that name file and mend."""

import json
import shutil

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask
from pydantic import TypeAdapter, ValidationError
from refer_folder import rectangle

from harness.data.options import DataOptions, ReferData, ReferSet, SyntheticData
from harness.data.prepare import check_leakage, load_tables, prepare
from harness.data.stage import prepare_data

BOTH = [ReferSet(name="toy", split_by="x", splits=("train", "val"))]


def run(root, out, sets=BOTH, **more):
    return prepare(root, sets, out, progress=False, **more)


def test_tables_hold_what_the_files_hold(folder, tmp_path):
    summary = run(folder.write(), tmp_path / "out")
    tables = load_tables(tmp_path / "out")
    rows = tables.expressions.sort_values("sent_id")
    assert rows["sent_id"].tolist() == [101, 102, 103]
    assert rows["split"].tolist() == ["train", "train", "val"]
    assert rows["phenomenon"].tolist() == ["location", "attribute", "relation"]
    assert rows["category"].tolist() == ["cup", "cup", "box"]
    # Image 1 has two cups, image 2 one box.
    assert rows["distractors"].tolist() == [1, 1, 0]
    assert tables.annotations.set_index("ann_id")["area"].to_dict() == {11: 50, 12: 100, 21: 100}
    row = tables.annotations.set_index("ann_id").loc[11]
    mask = coco_mask.decode({"size": [row["height"], row["width"]], "counts": row["rle"].encode()})
    assert mask[3:8, 2:12].all() and mask.sum() == 50
    assert summary["datasets"]["toy"]["train"]["expressions"] == 2
    assert tables.image_path(1).is_file()


def test_the_summary_tells_other_photographs_masks_and_words(folder, tmp_path):
    def told():
        return run(folder.root, tmp_path / "out")["content"]

    first = run(folder.write(), tmp_path / "first")["content"]
    assert told() == first  # wherever it is written
    path = folder.root / "images" / "deep" / "im1.png"
    path.rename(folder.root / "images" / "im1.png")
    assert told() == first  # wherever the photograph lies
    Image.new("RGB", (40, 30), "red").save(folder.root / "images" / "im1.png")
    repainted = told()
    folder.annotations[0]["segmentation"] = [rectangle(3, 3, 13, 8)]
    folder.write()
    (folder.root / "images" / "im1.png").unlink()
    moved = told()
    folder.refs[0]["sentences"][0]["sent"] = "right cup"
    folder.write()
    reworded = told()
    assert len({first, repainted, moved, reworded}) == 4


def test_only_images_of_asked_splits_are_opened(folder, tmp_path):
    root = folder.write()
    (root / "images" / "deep" / "im1.png").unlink()
    run(root, tmp_path / "out", [ReferSet(name="toy", split_by="x", splits=("val",))])
    assert load_tables(tmp_path / "out").images["image_id"].tolist() == [2]


def test_missing_truncated_and_resized_images_are_named(folder, tmp_path):
    root = folder.write()
    path = root / "images" / "deep" / "im1.png"
    whole = path.read_bytes()
    path.unlink()
    with pytest.raises(ValueError, match=r"im1\.png is nowhere below"):
        run(root, tmp_path / "out")
    path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"im1\.png is truncated or no image"):
        run(root, tmp_path / "out")
    Image.new("RGB", (41, 30)).save(path)
    with pytest.raises(ValueError, match=r"im1\.png is 41 x 30, but listed as 40 x 30"):
        run(root, tmp_path / "out")
    path.write_bytes(whole)
    (root / "images" / "other").mkdir()
    Image.new("RGB", (40, 30)).save(root / "images" / "other" / "im1.png")
    with pytest.raises(ValueError, match="different contents"):
        run(root, tmp_path / "out")
    with pytest.raises(ValueError, match="no finished tables"):
        load_tables(tmp_path / "out")


def test_truncated_jpeg_is_refused(folder, tmp_path):
    folder.images[0]["file_name"] = "im1.jpg"
    root = folder.write()
    path = root / "images" / "deep" / "im1.jpg"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 3 // 4])
    with pytest.raises(ValueError, match=r"im1\.jpg is truncated"):
        run(root, tmp_path / "out")


def test_referred_mask_without_pixels_is_refused_another_counted(folder, tmp_path):
    nothing = {"size": [30, 40], "counts": [1200]}
    folder.annotations.append(folder.annotation(13, 1, nothing))
    summary = run(folder.write(), tmp_path / "out")
    assert summary["annotations_without_pixels"] == 1
    assert 13 not in set(load_tables(tmp_path / "out").annotations["ann_id"])
    folder.annotations[0]["segmentation"] = nothing
    with pytest.raises(ValueError, match="annotation 11 is referred to but its mask has no pixel"):
        run(folder.write(), tmp_path / "out")
    folder.annotations[0]["segmentation"] = [[1.0, 2.0]]
    with pytest.raises(ValueError, match=r"instances\.json: annotation 11: a polygon needs"):
        run(folder.write(), tmp_path / "out")


def test_unknown_split_is_refused(folder, tmp_path):
    with pytest.raises(ValueError, match="has no split 'testB'"):
        run(folder.write(), tmp_path / "out", [ReferSet(name="toy", split_by="x", splits=("testB",))])


def _two_datasets(folder):
    """A second dataset whose val image is the first one's train image."""
    root = folder.write()
    folder.refs = [folder.ref(9, 12, 1, "val", {900: "cup"}), folder.ref(8, 21, 2, "train", {901: "box"})]
    folder.write("other")
    return root, [*BOTH, ReferSet(name="other", split_by="x", splits=("train", "val"))]


def test_clean_pool_drops_what_joint_leaks(folder, tmp_path):
    root, sets = _two_datasets(folder)
    joint = run(root, tmp_path / "joint", sets)
    leaks = check_leakage(load_tables(tmp_path / "joint"))
    assert sorted(zip(leaks["image_id"], leaks["train_dataset"], leaks["held_out_dataset"], strict=True)) == [
        (1, "toy", "other"),
        (2, "other", "toy"),
    ]
    assert joint["train_pool"]["leaking_images"] == 2
    clean = run(root, tmp_path / "clean", sets, train_pool="clean")
    assert check_leakage(load_tables(tmp_path / "clean")).empty
    assert clean["train_pool"]["dropped_by_dataset"] == {
        "toy": {"images": 1, "expressions": 2},
        "other": {"images": 1, "expressions": 1},
    }
    assert set(load_tables(tmp_path / "clean").expressions["split"]) == {"val"}


def test_clean_pool_heeds_splits_that_are_not_prepared(folder, tmp_path):
    root, _ = _two_datasets(folder)
    sets = [
        ReferSet(name="toy", split_by="x", splits=("val", "train")),
        ReferSet(name="other", split_by="x", splits=()),
    ]
    clean = run(root, tmp_path / "clean", sets, train_pool="clean")
    assert clean["train_pool"]["dropped_images"] == 1


def test_a_renamed_copy_is_a_leak(folder, tmp_path):
    root = folder.write()
    shutil.copy(root / "images" / "deep" / "im2.png", root / "images" / "deep" / "im1.png")
    run(root, tmp_path / "joint")
    assert check_leakage(load_tables(tmp_path / "joint"))["by"].tolist() == ["sha256"]
    run(root, tmp_path / "clean", train_pool="clean")
    assert set(load_tables(tmp_path / "clean").expressions["split"]) == {"val"}


def test_datasets_that_disagree_on_an_image_are_refused(folder, tmp_path):
    root = folder.write()
    folder.images[0]["file_name"] = "elsewhere.png"
    folder.write("other")
    with pytest.raises(ValueError, match="do not belong together"):
        run(root, tmp_path / "out", [*BOTH, ReferSet(name="other", split_by="x", splits=("train",))])


@pytest.mark.parametrize(
    ("table", "spoil", "message"),
    [
        ("images", lambda f: f.drop(columns="sha256"), "lacks the columns"),
        ("images", lambda f: pd.concat([f, f]), "repeats a key"),
        ("images", lambda f: f[f["image_id"] != 1], "that images.parquet lacks"),
        ("annotations", lambda f: f[f["ann_id"] != 11], "refers to annotations"),
        ("expressions", lambda f: f.astype({"ref_id": "float64"}), "column ref_id is not whole int64"),
        ("expressions", lambda f: f.assign(sentence=None), "column sentence"),
    ],
)
def test_spoilt_tables_are_refused(folder, tmp_path, table, spoil, message):
    run(folder.write(), tmp_path / "out")
    path = tmp_path / "out" / f"{table}.parquet"
    spoil(pd.read_parquet(path)).to_parquet(path)
    with pytest.raises(ValueError, match=message):
        load_tables(tmp_path / "out")


def test_cut_table_is_refused(folder, tmp_path):
    run(folder.write(), tmp_path / "out")
    path = tmp_path / "out" / "images.parquet"
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(ValueError, match=r"images\.parquet cannot be read"):
        load_tables(tmp_path / "out")


def test_options_refuse_what_they_do_not_know():
    adapter = TypeAdapter(DataOptions)
    assert adapter.validate_python({"kind": "synthetic", "seed": 3}) == SyntheticData(seed=3)
    one = {"name": "refcoco", "split_by": "unc", "splits": ["val"]}
    bad = [
        {"kind": "synthetic", "sed": 3},
        {"kind": "synthetic", "objects": [8, 4]},
        {"kind": "synthetic", "objects": [3, 14]},
        {"kind": "refer", "root": "x", "datasets": []},
        {"kind": "refer", "root": "x", "datasets": [one, one]},
        {"kind": "refer", "root": "x", "datasets": [{**one, "splitz": []}]},
    ]
    for options in bad:
        with pytest.raises(ValidationError):
            adapter.validate_python(options)


def test_unset_variable_is_named(tmp_path, monkeypatch):
    monkeypatch.delenv("NO_SUCH_DATA", raising=False)
    options = ReferData(root="${NO_SUCH_DATA}/x", datasets=tuple(BOTH))
    with pytest.raises(ValueError, match="environment variable NO_SUCH_DATA"):
        prepare_data(options, tmp_path)


@pytest.mark.real
def test_real_sample_counts(real_data, tmp_path, monkeypatch):
    monkeypatch.setenv("SAMPLE", str(real_data))
    sets = (
        ReferSet(name="refcoco", split_by="unc", splits=("train", "val", "testA", "testB")),
        ReferSet(name="refcocog", split_by="google", splits=("val",)),
    )
    prepare_data(ReferData(root="${SAMPLE}", datasets=sets), tmp_path)
    tables = load_tables(tmp_path / "prepared")
    counts = tables.expressions.groupby(["dataset", "split"]).agg(
        images=("image_id", "nunique"), refs=("ref_id", "nunique"), expressions=("sent_id", "size")
    )
    # The sample's own readme.
    assert {k: tuple(v) for k, v in zip(counts.index, counts.to_numpy().tolist(), strict=True)} == {
        ("refcoco", "train"): (16, 26, 33),
        ("refcoco", "val"): (5, 16, 45),
        ("refcoco", "testA"): (2, 6, 18),
        ("refcoco", "testB"): (5, 11, 33),
        ("refcocog", "val"): (17, 18, 18),
    }
    assert json.loads((tmp_path / "prepared" / "summary.json").read_text())["image_root"] == "${SAMPLE}"
    assert np.asarray(Image.open(tables.image_path(int(tables.images["image_id"].iloc[0])))).ndim >= 2
