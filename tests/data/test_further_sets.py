"""gRefCOCO and ReasonSeg: none, one or several objects, pixels that are not scored, and what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
from PIL import Image, ImageOps
from pycocotools import mask as coco_mask
from refer_folder import Folder, rectangle

from harness.data.grefcoco import read_grefcoco
from harness.data.options import ReferSet
from harness.data.prepare import prepare
from harness.data.reasonseg import read_reasonseg
from harness.data.tables import load_tables
from harness.scoring.metrics import score_predictions

# --- gRefCOCO ------------------------------------------------------------------------------------


def gref(ref_id, ann_ids, image_id, split, *sentences, **more):
    return {
        "ref_id": ref_id, "ann_id": ann_ids, "image_id": image_id, "split": split,
        "sentences": [{"sent_id": ref_id * 10 + k, "sent": s} for k, s in enumerate(sentences)], **more,
    }  # fmt: skip


@pytest.fixture
def gref_root(folder: Folder):
    def write(refs) -> Folder:
        folder.write("grefcoco")
        (folder.root / "grefcoco" / "grefs(unc).json").write_text(json.dumps(refs))
        return folder

    return write


REFS = [
    gref(0, [11], 1, "train", "left cup", no_target=False),
    gref(1, [11, 12], 1, "val", "both cups", "all", no_target=False),
    gref(2, [-1], 2, "val", "the elephant", no_target=True, category_id=[-1]),
]


def mask_of(tables, row) -> np.ndarray:
    found = tables.annotations.set_index(["dataset", "ann_id"]).loc[(row.dataset, row.ann_id)]
    return coco_mask.decode({"size": [int(found.height), int(found.width)], "counts": found.rle.encode()})


def prepared(folder, out, *parts):
    prepare(folder.root, parts, out, progress=False)
    return load_tables(out)


def test_several_objects_are_their_union_and_nothing_is_an_empty_mask(gref_root, tmp_path):
    folder = gref_root(REFS)
    part = ReferSet(name="grefcoco", split_by="unc", splits=("train", "val"), format="grefcoco")
    tables = prepared(folder, tmp_path / "out", part)
    one, both, again, none = tables.expressions.sort_values(["split", "sent_id"]).itertuples()
    # Rectangles with corners on whole numbers: 10 x 5 and 10 x 10 pixels apart from each other.
    assert mask_of(tables, one).sum() == 50 and one.ann_id == 11
    union = mask_of(tables, both)
    assert union.sum() == 150 and union[3:8, 2:12].all() and union[10:20, 20:30].all()
    assert again.ann_id == both.ann_id < 0 and both.category == "several" and both.distractors == 0
    assert mask_of(tables, none).sum() == 0 and none.category == "nothing"


def test_an_expression_for_nothing_scores_by_its_empty_mask(gref_root, tmp_path):
    folder = gref_root(REFS)
    part = ReferSet(name="grefcoco", split_by="unc", splits=("val",), format="grefcoco")
    tables = prepared(folder, tmp_path / "out", part)
    blank = coco_mask.encode(np.zeros((30, 40), np.uint8, order="F"))["counts"].decode()
    scores = score_predictions(predictions(tables, blank), tables.expressions, tables.annotations)
    by_ref = scores.groupby("ref_id")[["union", "pred_area"]].sum()
    assert by_ref.loc[2].tolist() == [0, 0] and by_ref.loc[1].tolist() == [300, 0]


def predictions(tables, rle) -> pd.DataFrame:
    rows = tables.expressions[["dataset", "split", "ref_id", "sent_id", "image_id"]].copy()
    sizes = tables.images.set_index("image_id").loc[rows["image_id"]]
    fixed = {"study": "s", "projector": "p", "variant": "base", "budget": "auto", "seed": 0}
    return rows.assign(
        **fixed, protocol="full", visual_tokens=1, seg_emitted=True, status="ok", rle=rle,
        height=sizes["height"].to_numpy(), width=sizes["width"].to_numpy(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ([gref(1, [11, -1], 1, "val", "x")], "objects and nothing at once"),
        ([gref(1, [-1], 1, "val", "x", no_target=False)], "objects and nothing at once"),
        ([gref(1, [21], 1, "val", "x")], "needs annotation 21 of image 1"),
        ([gref(1, [99], 1, "val", "x")], "needs annotation 99"),
        ([gref(1, [-1], 7, "val", "x")], "about image 7"),
        ([gref(1, [11], 1, "val")], "no sentence"),
        ([gref(1, [11], 1, "val", "x"), gref(1, [12], 1, "val", "y")], "ref_id 1 stands twice"),
        ([{"ref_id": 1}], "lacks a field"),
        ({}, "list of refs"),
    ],
)
def test_what_does_not_fit_together_is_refused(gref_root, refs, message):
    folder = gref_root(refs)
    with pytest.raises(ValueError, match=message):
        read_grefcoco(folder.root, "grefcoco", "unc")


def test_lists_of_run_length_codes_are_a_union(gref_root):
    folder = gref_root(REFS)
    path = folder.root / "grefcoco" / "instances.json"
    content = json.loads(path.read_text())
    masks = np.zeros((2, 30, 40), np.uint8)
    masks[0, :2, :2] = masks[1, 1:3, 1:3] = 1
    codes = [coco_mask.encode(np.asfortranarray(m)) for m in masks]
    content["annotations"][0]["segmentation"] = [{**c, "counts": c["counts"].decode()} for c in codes]
    path.write_text(json.dumps(content))
    data = read_grefcoco(folder.root, "grefcoco", "unc")
    made = data.annotations[-2].segmentation  # the union of both codes (7 pixels) and annotation 12
    assert coco_mask.area(made) == 7 + 100


# --- ReasonSeg -----------------------------------------------------------------------------------


def reason(root, name, shapes, text=("what is hot?", "the second"), size=(40, 30), encoding="utf-8"):
    folder = root / "ReasonSeg" / name.split("/")[0]
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(len(name)).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(root / "ReasonSeg" / f"{name}.jpg")
    content = {"text": list(text), "is_sentence": True, "shapes": shapes}
    (root / "ReasonSeg" / f"{name}.json").write_bytes(
        json.dumps(content, ensure_ascii=False).encode(encoding)
    )


def shape(label, x1, y1, x2, y2):
    corners = rectangle(x1, y1, x2, y2)
    return {"label": label, "points": list(zip(corners[::2], corners[1::2], strict=True))}


def test_reasonseg_is_read_with_its_edges_and_unscored_pixels(tmp_path):
    shapes = [shape("ignore", 4, 4, 6, 6), shape("target", 2, 2, 11, 9), shape("flag", 20, 20, 30, 29)]
    reason(tmp_path, "val/a", shapes, text=("café?", "x"), encoding="cp1252")
    reason(tmp_path, "train/a", [shape("target", 0, 0, 3, 3)])
    part = ReferSet(
        name="reasonseg", folder="ReasonSeg", split_by="-", splits=("train", "val"), format="reasonseg"
    )
    prepare(tmp_path, [part], tmp_path / "out", progress=False)
    tables = load_tables(tmp_path / "out")
    val = tables.select("reasonseg", "val")
    assert val["sentence"].tolist() == ["café?"] and len(tables.select("reasonseg", "train")) == 2
    (row,) = val.itertuples()
    target = np.zeros((30, 40), np.uint8)
    target[2:10, 2:12] = 1  # corners included
    target[4:7, 4:7] = 0  # the smaller shape lies on top
    assert np.array_equal(mask_of(tables, row), target)

    # A prediction that covers everything: unscored pixels count neither as hit nor as miss.
    everything = coco_mask.encode(np.ones((30, 40), np.uint8, order="F"))["counts"].decode()
    wanted = tables.expressions[tables.expressions["split"] == "val"]
    shown = predictions(tables, everything)
    scores = score_predictions(shown[shown["split"] == "val"], wanted, tables.annotations)
    assert scores[["intersection", "gt_area", "pred_area"]].iloc[0].tolist() == [71, 71, 1200 - 9]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_outlines_are_meant_in_the_upright_photograph(tmp_path, orientation):
    """By Pillow's own turning: the mask, turned as the photograph is, is the outline as it was drawn."""
    size = (30, 40) if orientation >= 5 else (40, 30)  # upright, of a stored one of 40 x 30
    reason(tmp_path, "val/a", [shape("target", 2, 3, 12, 8), shape("ignore", 20, 5, 25, 26)])
    path = tmp_path / "ReasonSeg/val/a.jpg"
    exif = Image.Exif()
    exif[0x0112] = orientation
    with Image.open(path) as stored:
        stored.save(path, exif=exif)
    with Image.open(path) as stored:
        assert ImageOps.exif_transpose(stored).size == size
    found = read_reasonseg(tmp_path, "ReasonSeg")
    for rles, (x1, y1, x2, y2) in (
        ([a.segmentation for a in found.annotations.values()], (2, 3, 12, 8)),
        (list(found.ignored.values()), (20, 5, 25, 26)),
    ):
        (rle,) = rles
        mask = Image.fromarray(coco_mask.decode(rle))
        mask.getexif()[0x0112] = orientation
        drawn = np.zeros(size[::-1], np.uint8)
        drawn[y1 : y2 + 1, x1 : x2 + 1] = 1
        assert np.array_equal(np.asarray(ImageOps.exif_transpose(mask)), drawn)


def test_ids_do_not_hang_on_what_else_is_there(tmp_path):
    reason(tmp_path, "val/b", [shape("target", 0, 0, 3, 3)])
    alone = read_reasonseg(tmp_path, "ReasonSeg").refs[0]
    reason(tmp_path, "val/a", [shape("target", 0, 0, 3, 3)])
    both = {ref.ref_id for ref in read_reasonseg(tmp_path, "ReasonSeg").refs}
    assert alone.ref_id in both and len(both) == 2 and min(both) > 10**9  # never one of COCO's


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"text": [], "shapes": []}, "no text"),
        ({"text": [" "], "shapes": []}, "no text"),
        ({"text": ["x"], "shapes": [{"label": "target", "points": [[1, 2, 3]]}]}, "no list of points"),
        (
            {"text": ["x"], "shapes": [{"label": "target", "points": [[1, float("nan")]]}]},
            "no list of points",
        ),
        ({"shapes": []}, "no ReasonSeg annotation"),
    ],
)
def test_damaged_reasonseg_files_are_refused(tmp_path, content, message):
    reason(tmp_path, "val/a", [])
    (tmp_path / "ReasonSeg" / "val" / "a.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=message):
        read_reasonseg(tmp_path, "ReasonSeg")


def test_a_missing_photograph_is_named(tmp_path):
    reason(tmp_path, "val/a", [])
    (tmp_path / "ReasonSeg" / "val" / "a.jpg").unlink()
    with pytest.raises(ValueError, match=r"a\.jpg is missing"):
        read_reasonseg(tmp_path, "ReasonSeg")


# --- pixels under two polygons -------------------------------------------------------------------


def test_pixels_under_two_polygons_are_kept_apart(folder, tmp_path):
    folder.annotations[0] = folder.annotation(11, 1, [rectangle(0, 0, 10, 10), rectangle(5, 0, 15, 10)])
    folder.write()
    tables = prepared(folder, tmp_path / "out", ReferSet(name="toy", split_by="x", splits=("train", "val")))
    rows = tables.annotations.set_index("ann_id")
    assert coco_mask.area({"size": [30, 40], "counts": rows.loc[11, "rle"].encode()}) == 150
    single = coco_mask.decode({"size": [30, 40], "counts": rows.loc[11, "rle_single"].encode()})
    assert single.sum() == 100 and not single[:10, 5:10].any()
    assert rows.loc[21, "rle_single"] == "" == rows.loc[11, "rle_ignored"]
