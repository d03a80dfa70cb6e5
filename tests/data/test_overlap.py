"""Photographs shared between what is trained on and what is held out, counted by hand."""

import pytest
from refer_folder import Folder

from harness.cli import app
from harness.data.options import ReferSet
from harness.data.overlap import overlap_table, pool_note
from harness.data.prepare import prepare
from harness.data.refer import read_refer


@pytest.fixture
def two_sets(folder: Folder) -> Folder:
    """``toy`` trains on image 1 (two expressions) and holds out 2; ``other`` does it the other way round."""
    folder.write()
    folder.refs = [
        folder.ref(1, 21, 2, "train", {201: "a", 202: "b", 203: "c"}),
        folder.ref(2, 11, 1, "testA", {204: "d"}),
    ]
    folder.write("other")
    return folder


def test_every_pair_is_counted(two_sets):
    table = overlap_table({name: read_refer(two_sets.root, name, "x") for name in ("toy", "other")})
    found = table.set_index(["train_dataset", "held_out"])[["images", "expressions"]]
    assert found.loc["toy"].to_dict("index") == {
        "toy/val": {"images": 0, "expressions": 0},
        "other/testA": {"images": 1, "expressions": 2},
        "any": {"images": 1, "expressions": 2},
    }
    assert found.loc[("other", "any")].tolist() == [1, 3]
    assert table["train_expressions"].unique().tolist() == [2, 3]


@pytest.mark.parametrize("mode", ["joint", "clean"])
def test_the_report_says_what_is_shared_and_what_clean_leaves_out(two_sets, tmp_path, mode):
    # A third set, whose train image is held out nowhere, so that a clean pool is not empty.
    two_sets.images.append({"id": 3, "file_name": "im3.png", "width": 40, "height": 30})
    two_sets.annotations.append(two_sets.annotation(31, 3, [[1, 1, 9, 1, 9, 9]]))
    two_sets.refs = [two_sets.ref(1, 31, 3, "train", {301: "x"})]
    two_sets.write("third")
    sets = [ReferSet(name=n, split_by="x", splits=("train",)) for n in ("toy", "other", "third")]
    summary = prepare(two_sets.root, sets, tmp_path / mode, train_pool=mode, progress=False)
    shared = {"other": {"images": 1, "expressions": 3}, "toy": {"images": 1, "expressions": 2}}
    assert summary["train_pool"]["held_out_too"] == {"images": 2, "expressions": 5, "by_dataset": shared}
    kept = sum(c["train"]["expressions"] for c in summary["datasets"].values())
    assert kept == (6 if mode == "joint" else 1)
    note = pool_note(summary)
    assert "toy: 1 images, 2 expressions" in note and f"pool {mode}" in note


def test_nothing_shared_is_not_worth_a_note(folder, tmp_path):
    folder.write()
    part = ReferSet(name="toy", split_by="x", splits=("train", "val"))
    assert pool_note(prepare(folder.root, [part], tmp_path / "out", progress=False)) is None


def test_the_command_needs_real_data(capsys, monkeypatch):
    with pytest.raises(ValueError, match="reads no REFER data"):
        app(["data", "overlap"])
