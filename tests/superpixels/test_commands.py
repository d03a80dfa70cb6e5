"""The commands that SVP adds to the program."""

import json
from importlib.metadata import entry_points

import numpy as np
import pytest
from PIL import Image

from svp.commands import bench, superpixels


def test_the_program_finds_them():
    assert {p.name for p in entry_points(group="svp.commands")} == {"bench", "superpixels"}


def test_superpixels_of_an_image_are_drawn(tmp_path, capsys):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    superpixels(tmp_path / "halves.png", out=tmp_path / "out.png", options='{"segments": 2}')
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 2 and told["coverage"] == 1 and told["overlap"] == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (40, 60, 3) and not np.array_equal(drawn, pixels)


def test_bench_projector_prints_one_json_value(capsys):
    bench(["projector", "--superpixels", "3", "--repeats", "1"], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    parts = told["parameters"]
    assert parts["all"] == parts["sspe"] + parts["ssa"] + parts["mlp"]


def test_calibrate_names_the_option_that_gives_the_count(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    command = ["calibrate", str(tmp_path / "photo.png"), "--source", "grid", "--options", '{"rows": 2}']
    span = ["--low", "1", "--high", "20", "--count", "14"]
    bench([*command, "--option", "columns", *span], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert told["reached"] and told["mean_count"] == 14 and round(told["value"]) == 7
    with pytest.raises(ValueError, match="'grid' has no option 'pred_iou_thresh'; it has rows, columns"):
        bench(command, result_action="return_value")
