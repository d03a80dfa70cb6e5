"""The commands that SVP adds to the program."""

import json
import shutil
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from svp.commands import bench, superpixels

ROOT = Path(__file__).resolve().parents[2]


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


def test_bench_superpixels_makes_the_sam_and_the_scenes_it_needs(tmp_path, monkeypatch, capsys):
    shutil.copytree(ROOT / "config", tmp_path / "config")
    names = ("default.yaml", "studies/smoke.yaml")
    value, smoke = (yaml.safe_load((ROOT / "config" / name).read_text()) for name in names)
    value |= {"data": smoke["data"], "set": smoke["set"]}
    (tmp_path / "config/default.yaml").write_text(yaml.safe_dump(value))
    monkeypatch.chdir(tmp_path)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # a stage sets them
    command = ["superpixels", "--scenes", "2", "--points-per-side", "4"]
    told = []
    for _ in range(2):
        bench(command, result_action="return_value")
        told.append(json.loads(capsys.readouterr().out))
    assert (told[0]["images"], told[0]["prompts"], told[0]["device"]) == (2, 16, "cpu")
    assert told[0]["official_thresholds"] == {"pred_iou_thresh": 0.4, "stability_score_thresh": 0.5}
    assert told[0]["adaptive_prompt_share"] <= 0.25
    # 4 prompts a side in place of 8: the threshold is not the study's, and was found on train scenes
    found = told[0]["calibrated"]
    assert found["scenes"] == 2 and told[0]["options"]["pred_iou_thresh"] == found["pred_iou_thresh"]
    made = [*(tmp_path / "results/shared/pretrained").iterdir()]
    assert [folder.name for folder in made] == [told[0]["sam"]]  # no other model was trained, and one once
    untimed = ("official_masks", "full_superpixels", "adaptive_superpixels", "exact_matched_iou", "sam")
    assert [told[1][key] for key in untimed] == [told[0][key] for key in untimed]


def test_calibrate_names_the_option_that_gives_the_count(tmp_path, capsys):
    Image.fromarray(np.zeros((40, 60, 3), np.uint8)).save(tmp_path / "photo.png")
    command = ["calibrate", str(tmp_path / "photo.png"), "--source", "grid", "--options", '{"rows": 2}']
    span = ["--low", "1", "--high", "20", "--count", "14"]
    bench([*command, "--option", "columns", *span], result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    assert told["reached"] and told["mean_count"] == 14 and round(told["value"]) == 7
    with pytest.raises(ValueError, match="'grid' has no option 'pred_iou_thresh'; it has rows, columns"):
        bench(command, result_action="return_value")
