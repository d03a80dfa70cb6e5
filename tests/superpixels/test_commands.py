"""The commands that SVP adds to the program."""

import json
from importlib.metadata import entry_points

import numpy as np
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
