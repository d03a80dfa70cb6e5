import numpy as np
import pandas as pd
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from harness.images import read_rgb
from harness.plugins.discovery import find_sources, load_source
from harness.superpixels.source import SuperpixelMasks
from svp.superpixels.felzenszwalb import Felzenszwalb
from svp.superpixels.grid import Grid
from svp.superpixels.instances import Instances
from svp.superpixels.slic import Slic

PARTITIONS = [
    Slic(Slic.Config(segments=9)),
    Felzenszwalb(Felzenszwalb.Config(scale=50, min_size=20)),
    Grid(Grid.Config(rows=2, columns=3)),
]


def scene(height=60, width=80):
    image = np.full((height, width, 3), 40, np.uint8)
    image[height // 4 : height // 2, width // 4 : width // 2] = (220, 30, 30)
    image[height // 2 :, width // 2 :] = (20, 200, 60)
    return image


@pytest.mark.parametrize("source", PARTITIONS, ids=lambda s: s.name)
@pytest.mark.parametrize("size", [(60, 80), (1, 64), (64, 1), (1, 1)])
def test_partitions_cover_every_pixel_once(source, size):
    made = source.generate(scene(*size))
    assert made.masks.shape[1:] == size
    assert (made.masks.sum(axis=0) == 1).all()
    assert made.masks.any(axis=(1, 2)).all()


@pytest.mark.parametrize("source", PARTITIONS, ids=lambda s: s.name)
def test_a_blank_image_is_no_error(source):
    assert (source.generate(np.zeros((30, 40, 3), np.uint8)).masks.sum(axis=0) == 1).all()


@pytest.mark.parametrize("source", PARTITIONS[:2], ids=lambda s: s.name)
def test_edges_of_the_image_are_edges_of_superpixels(source):
    image = scene()
    colour = image.astype(int) @ [1, 256, 65536]
    mixed = [len(np.unique(colour[m])) > 1 for m in source.generate(image).masks]
    assert np.mean(mixed) < 0.5


def test_grid_is_the_grid_asked_for():
    masks = PARTITIONS[2].generate(scene(4, 6)).masks
    labels = masks.argmax(axis=0)
    assert labels.tolist() == [[0, 0, 1, 1, 2, 2]] * 2 + [[3, 3, 4, 4, 5, 5]] * 2


def annotations(tmp_path, masks, image_id=7):
    rows = [
        {
            "dataset": dataset,
            "ann_id": number,
            "image_id": image_id,
            "height": mask.shape[0],
            "width": mask.shape[1],
            "rle": coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))["counts"].decode(),
        }
        for dataset in ("refcoco", "refcocog")
        for number, mask in enumerate(masks)
    ]
    path = tmp_path / "annotations.parquet"
    pd.DataFrame(rows).to_parquet(path)
    return path


def test_instances_are_the_annotated_ones_and_the_rest(tmp_path):
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:3, 1:4] = masks[1, 2:5, 3:7] = True
    source = Instances(Instances.Config(annotations=annotations(tmp_path, masks)))
    made = source.generate(np.zeros((6, 8, 3), np.uint8), image_id=7).masks
    assert np.array_equal(made, [*masks, ~masks.any(axis=0)])  # an object of two datasets counts once
    assert source.generate(np.zeros((6, 8, 3), np.uint8), image_id=8).masks.all()  # nothing annotated
    with pytest.raises(ValueError, match="image_id"):
        source.generate(np.zeros((6, 8, 3), np.uint8))
    with pytest.raises(ValueError, match="size"):
        source.generate(np.zeros((8, 6, 3), np.uint8), image_id=7)


def test_a_union_made_up_for_an_expression_is_no_object(tmp_path):
    """gRefCOCO's targets of several objects are annotations with negative ids: they would be the answer."""
    masks = np.zeros((2, 6, 8), bool)
    masks[0, 1:3, 1:4] = masks[1, 2:5, 3:7] = True
    path = annotations(tmp_path, [*masks, masks.any(axis=0)])
    table = pd.read_parquet(path)
    table.assign(ann_id=table["ann_id"].replace(2, -5)).to_parquet(path)
    made = Instances(Instances.Config(annotations=path)).generate(np.zeros((6, 8, 3), np.uint8), image_id=7)
    assert np.array_equal(made.masks, [*masks, ~masks.any(axis=0)])


def test_instances_need_their_table(tmp_path):
    with pytest.raises(ValueError, match="annotations"):
        Instances()
    with pytest.raises(ValueError, match="gone.parquet"):
        Instances(Instances.Config(annotations=tmp_path / "gone.parquet"))


def test_sources_are_found_without_being_imported(tmp_path, monkeypatch):
    found = find_sources("svp.superpixels")
    assert {"sam", "slic", "felzenszwalb", "grid", "instances"} <= set(found)
    assert found["sam"].needs_sam and not found["slic"].needs_sam
    assert load_source("slic", "svp.superpixels") is Slic
    with pytest.raises(ValueError, match="did you mean 'slic'"):
        load_source("slik", "svp.superpixels")

    package = tmp_path / "strange_sources"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "one.py").write_text(
        "raise RuntimeError\nclass One:\n    name = 'one'\n    needs_sam = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert find_sources("strange_sources")["one"].needs_sam
    (package / "two.py").write_text("class Two:\n    name = 'one'\n")
    with pytest.raises(ValueError, match=r"one\.py and .*two\.py"):
        find_sources("strange_sources")
    (package / "two.py").write_text("class Two:\n    name = 't' + 'wo'\n")
    with pytest.raises(ValueError, match="literal"):
        find_sources("strange_sources")


def test_images_of_every_mode_are_read_as_rgb(tmp_path):
    gray = (np.arange(48).reshape(6, 8) * 5).astype(np.uint8)
    path = tmp_path / "image.png"
    Image.fromarray(gray).save(path)
    assert np.array_equal(read_rgb(path), np.repeat(gray[..., None], 3, axis=2))
    Image.fromarray(gray.astype(np.uint16) * 256 + 17).save(path)  # 16 bits: the upper byte
    assert np.array_equal(read_rgb(path)[..., 1], gray)
    colour = np.stack([gray, gray[::-1], gray[:, ::-1]], axis=2)
    Image.fromarray(np.dstack([colour, np.full_like(gray, 9)])).save(path)  # transparency is dropped
    assert np.array_equal(read_rgb(path), colour)
    cmyk = tmp_path / "image.tif"
    Image.fromarray(255 - colour).convert("CMYK").save(cmyk)
    assert np.array_equal(read_rgb(cmyk), 255 - colour)


def test_the_exif_orientation_is_left_alone(tmp_path):
    # masks are drawn in the stored frame; rotating the image would part it from them
    path, exif = tmp_path / "turned.png", Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(scene(20, 30)).save(path, exif=exif)
    assert Image.open(path).getexif()[0x0112] == 6
    assert np.array_equal(read_rgb(path), scene(20, 30))


def test_an_unreadable_image_is_named(tmp_path):
    whole, cut = tmp_path / "whole.png", tmp_path / "cut.png"
    Image.fromarray(scene()).save(whole)
    cut.write_bytes(whole.read_bytes()[:150])
    with pytest.raises(ValueError, match=r"cut\.png is truncated or no image"):
        read_rgb(cut)
    with pytest.raises(FileNotFoundError, match=r"gone\.png is missing; .*svp data check"):
        read_rgb(tmp_path / "gone.png")


def test_masks_that_do_not_belong_together_are_refused():
    masks = np.ones((2, 3, 3), bool)
    with pytest.raises(ValueError, match="not one each"):
        SuperpixelMasks(masks, np.ones(1, np.float32), np.ones(2, np.int8))
    with pytest.raises(ValueError, match="bool"):
        SuperpixelMasks(masks.astype(np.uint8), np.ones(2, np.float32), np.ones(2, np.int8))
