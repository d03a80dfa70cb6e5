import json

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from harness.superpixels.source import SuperpixelConfig, SuperpixelMasks, SuperpixelSource
from harness.superpixels.stage import write_superpixels
from harness.superpixels.store import SuperpixelStore, mask_geometry

GRID = (3, 4)


class Scripted(SuperpixelSource):
    """Overlapping random rectangles, as many as the image's first pixel says; counts its calls."""

    name = "scripted"

    class Config(SuperpixelConfig):
        version: int = 0

    calls = 0
    fail_after = 10**9

    def generate(self, image, *, image_id=None, sam_embedding=None):
        if self.calls >= self.fail_after:
            raise KeyboardInterrupt
        self.calls += 1
        rng = np.random.default_rng(image_id)
        masks = np.zeros((int(image[0, 0, 0]), *image.shape[:2]), bool)
        for mask in masks:
            y, x = rng.integers(0, image.shape[0]), rng.integers(0, image.shape[1])
            mask[y : y + rng.integers(1, 9), x : x + rng.integers(1, 9)] = True
        count = len(masks)
        return SuperpixelMasks(
            masks, rng.random(count).astype(np.float32), rng.integers(0, 3, count).astype(np.int8)
        )


@pytest.fixture
def images(tmp_path):
    rows = []
    for number in range(11):
        pixels = np.zeros((20 + number, 30, 3), np.uint8)
        pixels[0, 0, 0] = number  # image 100 is blank
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        rows.append({"image_id": 100 + number, "path": f"{number}.png"})
    return pd.DataFrame(rows)


def write(images, tmp_path, source=None, **options):
    options = {"root": tmp_path, "shard_size": 4, "progress": False} | options
    return write_superpixels(images, source or Scripted(), GRID, tmp_path / "store", **options)


def random_masks(count, height, width, seed=0):
    masks = torch.rand(count, height, width, generator=torch.Generator().manual_seed(seed)) > 0.8
    masks[:, 0, 0] = True
    masks[0] = False
    masks[0, height // 2, width // 2] = True  # a single pixel
    return masks.numpy()


@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 53), (1, 40), (40, 1), (2, 3)])
@pytest.mark.parametrize("grid", [(12, 12), (3, 5)])
def test_weights_equal_up_sampling_then_averaging(height, width, grid):
    masks = random_masks(35, height, width)  # more than one chunk
    features = torch.randn(7, *grid, generator=torch.Generator().manual_seed(1))
    up = F.interpolate(features[None], (height, width), mode="bilinear", align_corners=False)[0]
    expected = torch.stack([up[:, torch.from_numpy(mask)].mean(dim=1) for mask in masks])
    weights = torch.from_numpy(mask_geometry(masks, grid)["weights"].astype(np.float32))
    torch.testing.assert_close(weights @ features.flatten(1).T, expected, atol=4e-3, rtol=0)  # float16


@pytest.mark.parametrize(("height", "width"), [(48, 64), (37, 53), (1, 40), (2, 3)])
@pytest.mark.parametrize("grid", [(12, 12), (3, 5)])
def test_occupancy_is_the_share_of_each_cell(height, width, grid):
    masks = random_masks(5, height, width)
    # every pixel repeated until cells are made of whole pixels
    fine = masks.repeat(grid[0], axis=1).repeat(grid[1], axis=2)
    shares = fine.reshape(5, grid[0], height, grid[1], width).mean(axis=(2, 4)).reshape(5, -1)
    geometry = mask_geometry(masks, grid)
    stored = geometry["occupancy"] / 255
    assert np.abs(stored - shares).max() <= 1 / 255 + 1e-6
    assert np.array_equal(stored > 0, shares > 0)  # no touched cell is lost to rounding
    blocks = fine.any(axis=0).reshape(grid[0], height, grid[1], width)
    union = (geometry["occupancy"].sum(axis=0, dtype=int) - geometry["excess"]) / 255
    twice = (fine.sum(axis=0) > 1).reshape(blocks.shape).any(axis=(1, 3)).ravel()
    assert np.abs(union - blocks.mean(axis=(1, 3)).ravel())[twice].max() <= 1 / 255 + 1e-6
    assert not geometry["excess"][~twice].any()
    np.testing.assert_allclose(geometry["areas"], masks.mean(axis=(1, 2)), rtol=1e-6)
    np.testing.assert_allclose(shares.mean(axis=1), geometry["areas"], rtol=1e-5)


def test_boxes_are_normalised_and_span_the_mask():
    masks = np.zeros((2, 10, 20), bool)
    masks[0, 2:5, 4:10] = masks[1, 9, 19] = True
    assert mask_geometry(masks, (2, 2))["boxes"].tolist() == [
        pytest.approx([4 / 20, 0.2, 0.5, 0.5]),
        pytest.approx([0.95, 0.9, 1, 1]),
    ]


def test_round_trip(images, tmp_path):
    source = Scripted()
    manifest = write(images, tmp_path, source)
    store = SuperpixelStore(tmp_path / "store")
    assert len(store) == 11 and store.image_ids == list(range(100, 111)) and store.grid == GRID
    for number in range(1, 11):
        made = source.generate(np.array(Image.open(tmp_path / f"{number}.png")), image_id=100 + number)
        read = store.masks(100 + number)
        assert np.array_equal(read.masks, made.masks)
        assert np.array_equal(read.levels, made.levels) and np.array_equal(read.scores, made.scores)
        batch, geometry = store.batch([100 + number]), mask_geometry(made.masks, GRID)
        assert store.count(100 + number) == number and batch.lengths.tolist() == [number]
        assert np.array_equal(batch.occupancy.numpy() * 255, geometry["occupancy"])
        assert np.array_equal(batch.boxes.numpy(), geometry["boxes"])
        assert np.array_equal(batch.to("cpu").excess.numpy()[0] * 255, geometry["excess"])
        weights = geometry["weights"].astype(np.float32)
        np.testing.assert_allclose(
            batch.weights.numpy(), weights / weights.sum(axis=1, keepdims=True), rtol=1e-6
        )
        assert np.array_equal(batch.areas.numpy(), geometry["areas"])
    assert manifest["mean_count"] == pytest.approx((1 + sum(range(1, 11))) / 11)
    assert manifest["counts"]["105"] == 5 and manifest["source"] == "scripted"


def test_statistics_against_the_masks(images, tmp_path):
    manifest = write(images[images["image_id"] > 100], tmp_path)
    store = SuperpixelStore(tmp_path / "store")
    layers = [store.masks(i).masks.sum(axis=0) for i in store.image_ids]
    assert manifest["coverage"] == pytest.approx(np.mean([(n > 0).mean() for n in layers]))
    assert manifest["overlap"] == pytest.approx(np.mean([(n > 1).sum() / (n > 0).sum() for n in layers]))


def test_a_batch_is_its_images_one_after_the_other(images, tmp_path):
    write(images, tmp_path)
    store = SuperpixelStore(tmp_path / "store", cache_bytes=1)  # every group is dropped at once
    ids = [107, 101, 110, 107]
    batch, single = store.batch(ids), [store.batch([i]) for i in ids]
    assert batch.lengths.tolist() == [7, 1, 10, 7]
    for name in ("occupancy", "weights", "boxes", "areas", "excess"):
        assert torch.equal(getattr(batch, name), torch.cat([getattr(s, name) for s in single]))


def test_training_decodes_no_mask(images, tmp_path, monkeypatch):
    write(images, tmp_path)
    store = SuperpixelStore(tmp_path / "store")

    def forbidden(*_):
        raise AssertionError("a mask was decoded")

    monkeypatch.setattr("harness.superpixels.store.coco_mask.decode", forbidden)
    assert store.batch([105]).lengths.tolist() == [5]
    with pytest.raises(AssertionError, match="decoded"):
        store.masks(105)


def test_a_blank_image_gets_one_superpixel_that_covers_it(images, tmp_path):
    manifest = write(images, tmp_path)
    store = SuperpixelStore(tmp_path / "store")
    assert manifest["blank"] == [100]
    assert store.masks(100).masks.all() and store.masks(100).masks.shape == (1, 20, 30)
    batch = store.batch([100])
    assert batch.lengths.tolist() == [1] and (batch.occupancy == 1).all()
    assert batch.boxes.tolist() == [[0, 0, 1, 1]] and batch.areas.tolist() == [1]


def test_five_hundred_superpixels_and_one_pixel_images(tmp_path):
    class Many(SuperpixelSource):
        name = "many"

        def generate(self, image, *, image_id=None, sam_embedding=None):
            return SuperpixelMasks.of(random_masks(500 if image_id == 1 else 2, *image.shape[:2]))

    rows = []
    for image_id, size in ((1, (20, 25)), (2, (1, 30)), (3, (1, 1))):
        Image.fromarray(np.zeros((*size, 3), np.uint8)).save(tmp_path / f"{image_id}.png")
        rows.append({"image_id": image_id, "path": f"{image_id}.png"})
    write(pd.DataFrame(rows), tmp_path, Many())
    batch = SuperpixelStore(tmp_path / "store").batch([1, 2, 3])
    assert batch.lengths.tolist() == [500, 2, 2]
    assert torch.isfinite(batch.weights).all() and (batch.occupancy.sum(dim=1) > 0).all()


def test_a_killed_job_resumes_after_the_last_whole_shard(images, tmp_path):
    killed = Scripted()
    killed.fail_after = 6
    with pytest.raises(KeyboardInterrupt):
        write(images, tmp_path, killed)
    with pytest.raises(ValueError, match=r"manifest\.json is missing"):
        SuperpixelStore(tmp_path / "store")
    again = Scripted()
    manifest = write(images, tmp_path, again)
    assert again.calls == 11 - 4  # the first shard of four was whole
    resumed = {p.name: p.read_bytes() for p in sorted((tmp_path / "store").iterdir())}
    for path in (tmp_path / "store").iterdir():
        path.unlink()
    assert write(images, tmp_path) == manifest
    assert {p.name: p.read_bytes() for p in sorted((tmp_path / "store").iterdir())} == resumed


@pytest.mark.parametrize("change", ["config", "identity", "grid", "images", "cut"])
def test_shards_of_something_else_are_computed_again(images, tmp_path, change):
    write(images, tmp_path)
    source, options, grid = Scripted(), {}, GRID
    if change == "config":
        source = Scripted(Scripted.Config(version=1))
    elif change == "identity":
        options = {"identity": {"sam": "abc"}}
    elif change == "grid":
        grid = (4, 4)
    elif change == "images":
        images = images.iloc[1:]
    else:
        shard = tmp_path / "store" / "part-00000.parquet"
        shard.write_bytes(shard.read_bytes()[:-100])
    write_superpixels(
        images, source, grid, tmp_path / "store", root=tmp_path, shard_size=4, progress=False, **options
    )
    assert source.calls == (4 if change == "cut" else len(images))
    assert SuperpixelStore(tmp_path / "store").grid == grid


def test_fewer_shards_leave_no_stray_ones(images, tmp_path):
    write(images, tmp_path)
    write(images, tmp_path, shard_size=11)
    assert [p.name for p in (tmp_path / "store").glob("part-*")] == ["part-00000.parquet"]
    assert len(SuperpixelStore(tmp_path / "store")) == 11


@pytest.mark.parametrize("fault", ["cut", "corrupt", "gone", "other run", "version"])
def test_a_damaged_store_is_refused_by_name(images, tmp_path, fault):
    write(images, tmp_path)
    shard, manifest = tmp_path / "store" / "part-00001.parquet", tmp_path / "store" / "manifest.json"
    content = shard.read_bytes()
    if fault == "cut":
        shard.write_bytes(content[:-50])
    elif fault == "corrupt":
        shard.write_bytes(b"\0" * len(content))
    elif fault == "gone":
        shard.unlink()
    else:
        described = json.loads(manifest.read_text())
        described.update({"format": 1} if fault == "version" else {"fingerprint": "another"})
        manifest.write_text(json.dumps(described))
    with pytest.raises(ValueError, match="again") as caught:
        SuperpixelStore(tmp_path / "store")
    assert {"version": "format 1,", "other run": "another run"}.get(fault, "part-00001") in str(caught.value)


def test_an_image_that_is_not_there_and_one_that_is_there_twice(images, tmp_path):
    write(images, tmp_path)
    store = SuperpixelStore(tmp_path / "store")
    assert 104 in store and 99 not in store
    for ask in (lambda: store.batch([104, 99]), lambda: store.masks(99), lambda: store.count(99)):
        with pytest.raises(ValueError, match="of image 99;"):
            ask()
    with pytest.raises(ValueError, match="twice"):
        write(pd.concat([images, images]), tmp_path)


def test_a_source_is_handed_as_many_images_as_it_takes_and_the_store_is_the_same(images, tmp_path):
    handed = []

    class Together(Scripted):
        images_at_once = 3

        def generate_all(self, images, *, image_ids=None, sam_embeddings=None):
            assert sam_embeddings == [f"embedding of {i}" for i in image_ids]
            handed.append(list(image_ids))
            return super().generate_all(images, image_ids=image_ids, sam_embeddings=sam_embeddings)

    def embedding(image_id):
        return f"embedding of {image_id}"

    one = write(images, tmp_path, sam_embeddings=embedding)
    masks = [SuperpixelStore(tmp_path / "store").masks(100 + n).masks for n in range(11)]
    (tmp_path / "store" / "part-00001.parquet").unlink()
    (tmp_path / "store" / "part-00002.parquet").unlink()
    together = write(images, tmp_path, Together(), sam_embeddings=embedding)
    # shards of four images: three and then one, and three in the last
    assert handed == [[104, 105, 106], [107], [108, 109, 110]]
    assert one["counts"] == together["counts"]
    again = SuperpixelStore(tmp_path / "store")
    assert all(np.array_equal(again.masks(100 + n).masks, before) for n, before in enumerate(masks))


def test_cached_sam_embeddings_reach_the_source(images, tmp_path):
    seen = []

    class Nosy(Scripted):
        name = "nosy"

        def generate(self, image, *, image_id=None, sam_embedding=None):
            seen.append((image_id, sam_embedding))
            return super().generate(image, image_id=image_id)

    write(images, tmp_path, Nosy(), sam_embeddings=lambda image_id: f"embedding of {image_id}")
    assert seen == [(i, f"embedding of {i}") for i in images["image_id"]]
