"""The REFER reader: masks against masks drawn by hand, and every kind of bad file."""

import json

import numpy as np
import pytest
from pycocotools import mask as coco_mask
from refer_folder import rectangle

from harness.data.refer import read_refer, to_rle

H, W = 30, 40


def runs_of(mask: np.ndarray) -> list[int]:
    """COCO's uncompressed runs, by a plain loop: column by column, first run of zeros."""
    runs, value, length = [], 0, 0
    for pixel in mask.T.reshape(-1):
        if pixel != value:
            runs.append(length)
            value, length = pixel, 0
        length += 1
    return [*runs, length]


def drawn(x1, y1, x2, y2):
    mask = np.zeros((H, W), dtype=np.uint8)
    mask[y1:y2, x1:x2] = 1
    return mask


def test_overlapping_polygons_are_a_union():
    boxes = [(2, 3, 12, 8), (6, 5, 20, 25)]
    found = coco_mask.decode(to_rle([rectangle(*b) for b in boxes], H, W))
    assert found.max() == 1
    np.testing.assert_array_equal(found, np.maximum(drawn(*boxes[0]), drawn(*boxes[1])))


def test_all_codings_of_a_mask_agree():
    rng = np.random.default_rng(0)
    for density in (0.02, 0.3, 0.9, 1.0):
        mask = (rng.random((H, W)) < density).astype(np.uint8)
        compressed = coco_mask.encode(np.asfortranarray(mask))["counts"]
        codings = [
            {"size": [H, W], "counts": runs_of(mask)},
            {"size": [H, W], "counts": compressed},
            {"size": [H, W], "counts": compressed.decode()},
        ]
        for coding in codings:
            np.testing.assert_array_equal(coco_mask.decode(to_rle(coding, H, W)), mask)


@pytest.mark.parametrize(
    ("segmentation", "message"),
    [
        ([], "neither"),
        (None, "neither"),
        ([[1.0, 2.0, 3.0, 4.0]], "three"),
        ([[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]], "three"),
        ([[1.0, 2.0, float("nan"), 4.0, 5.0, 6.0]], "finite"),
        ({"size": [W, H], "counts": [H * W]}, "size"),
        ({"size": [H, W], "counts": [H * W + 1]}, "add up"),
        ({"size": [H, W], "counts": [H * W - 1]}, "add up"),
        ({"size": [H, W], "counts": [-5, H * W + 5]}, "add up"),
        ({"size": [H, W], "counts": "PP"}, "not a run-length code|pixels, not"),
        ({"size": [H, W], "counts": "~~"}, "not a run-length code"),
        ({"size": [H, W]}, "no counts"),
    ],
)
def test_malformed_segmentations_are_refused(segmentation, message):
    with pytest.raises(ValueError, match=message):
        to_rle(segmentation, H, W)


@pytest.mark.parametrize("protocol", [0, 1, 2, 4])
def test_ids_splits_and_sentences_survive(folder, protocol):
    data = read_refer(folder.write(protocol=protocol), "toy", "x")
    assert data.splits == ("train", "val")
    assert [(r.ref_id, r.ann_id, r.image_id) for r in data.of_split("train")] == [(1, 11, 1)]
    assert [(s.sent_id, s.text) for s in data.refs[0].sentences] == [(101, "left cup"), (102, "the red one")]
    assert set(data.annotations) == {11, 12, 21}
    assert data.categories == {1: "cup", 2: "box"}


def test_unknown_split_is_named_with_the_known(folder):
    with pytest.raises(ValueError, match=r"refs\(x\)\.p has no split 'testA'; it has train, val"):
        read_refer(folder.write(), "toy", "x").of_split("testA")


def _spoil(folder, how):
    if how == "no annotation":
        folder.annotations.pop(0)
    elif how == "elsewhere":
        folder.refs[0]["image_id"] = 2
    elif how == "empty":
        folder.refs[0]["sentences"][0]["sent"] = "  "
    elif how == "no tokens":
        folder.refs[0]["sentences"][0]["tokens"] = []
    elif how == "no sentence":
        folder.refs[0]["sentences"] = []
    elif how == "ref twice":
        folder.refs[1]["ref_id"] = 1
    elif how == "sentence twice":
        folder.refs[1]["sentences"][0]["sent_id"] = 101
    elif how == "annotation twice":
        folder.annotations.append(folder.annotations[0])
    elif how == "image twice":
        folder.images.append(folder.images[0])
    elif how == "no field":
        del folder.refs[0]["split"]
    elif how == "path":
        folder.images[0]["file_name"] = "../im1.png"


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ("no annotation", r"ref 1 needs annotation 11, which .*instances.json lacks"),
        ("elsewhere", "ref 1 says image 2"),
        ("empty", "sentence 101 has no tokens"),
        ("no tokens", "sentence 101 has no tokens"),
        ("no sentence", "ref 1 has no sentence"),
        ("ref twice", "ref_id 1 stands twice"),
        ("sentence twice", "sent_id 101 stands twice"),
        ("annotation twice", "annotation id 11 stands twice"),
        ("image twice", "image id 1 stands twice"),
        ("no field", "lacks a REFER field.*split"),
        ("path", "path for a file name"),
    ],
)
def test_files_that_do_not_fit_together_are_refused(folder, how, message, tmp_path):
    _spoil(folder, how)
    if how == "path":
        (tmp_path / "refer" / "images").mkdir(parents=True)
    with pytest.raises(ValueError, match=message):
        read_refer(folder.write(), "toy", "x")


def test_missing_and_cut_files_are_named(folder):
    root = folder.write()
    with pytest.raises(ValueError, match=r"refs\(unc\)\.p does not exist"):
        read_refer(root, "toy", "unc")
    for name in ("instances.json", "refs(x).p"):
        path = root / "toy" / name
        whole = path.read_bytes()
        path.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(ValueError, match=name.replace("(", r"\(").replace(")", r"\)")):
            read_refer(root, "toy", "x")
        path.write_bytes(whole)
    (root / "toy" / "instances.json").write_text(json.dumps({"images": []}))
    with pytest.raises(ValueError, match="not a COCO instances file"):
        read_refer(root, "toy", "x")


@pytest.mark.real
def test_real_sample_masks_fill_their_coco_boxes(real_data):
    # COCO wrote boxes from the same outlines by other code. Spikes thinner than a pixel vanish in a mask.
    apart = []
    for dataset, split_by in (("refcoco", "unc"), ("refcocog", "google")):
        data = read_refer(real_data, dataset, split_by)
        for annotation in data.annotations.values():
            image = data.images[annotation.image_id]
            x, y, w, h = coco_mask.toBbox(to_rle(annotation.segmentation, image.height, image.width))
            bx, by, bw, bh = annotation.box
            apart.append(np.abs([x - bx, y - by, x + w - bx - bw, y + h - by - bh]).max())
    assert len(apart) > 400
    assert np.quantile(apart, 0.95) < 1.5 and max(apart) < 12
