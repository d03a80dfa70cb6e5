"""The commands that SVP adds to the program."""

import json
import shutil
from functools import partial
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from photographs import OPEN, photograph
from PIL import Image

from harness.measuring.tiny_sam import TinySam
from harness.models.sam import TinySamSize, build_tiny_sam, save_tiny_sam
from harness.superpixels.source import open_sam
from svp.commands import bench, superpixels
from svp.superpixels.sam import SamSuperpixels

ROOT = Path(__file__).resolve().parents[2]


def test_the_program_finds_them():
    assert {p.name for p in entry_points(group="svp.commands")} == {"attention", "bench", "superpixels"}


def test_superpixels_of_an_image_are_drawn(tmp_path, capsys):
    pixels = np.zeros((40, 60, 3), np.uint8)
    pixels[:, 30:] = 200
    Image.fromarray(pixels).save(tmp_path / "halves.png")
    superpixels(tmp_path / "halves.png", out=tmp_path / "out.png", options='{"segments": 2}')
    told = json.loads(capsys.readouterr().out)
    assert told["count"] == 2 and told["coverage"] == 1 and told["overlap"] == 0
    drawn = np.asarray(Image.open(tmp_path / "out.png"))
    assert drawn.shape == (40, 60, 3) and not np.array_equal(drawn, pixels)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{segments: 2}", r"--options: .* is no JSON \(.*\); give an object, such as"),
        ("[2]", r"--options: \[2\] is no object"),
        ('{"segmnts": 2}', "'slic' has no option 'segmnts'; did you mean 'segments'"),
        ('{"segments": "many"}', "--options: slic: segments: "),
        ('{"segments": 0}', "--options: slic: segments: .* greater than or equal to 1"),
    ],
)
def test_wrong_options_are_refused_in_a_sentence(tmp_path, options, message):
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "photo.png")
    with pytest.raises(ValueError, match=message) as refused:
        superpixels(tmp_path / "photo.png", out=tmp_path / "out.png", options=options)
    assert "\n" not in str(refused.value)


def test_sam_without_weights_is_the_studys_with_its_options(tmp_path, monkeypatch, capsys):
    Image.fromarray(photograph()).save(tmp_path / "photo.png")
    folder, size = tmp_path / "tiny", TinySamSize(width=32, prompt_width=32)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        save_tiny_sam(build_tiny_sam(size), size, folder)
    options = OPEN | {"pred_iou_thresh": -9.0, "stability_score_thresh": 0.0, "points_per_side": 2}
    asked = []

    def study(count):
        asked.append(count)
        return TinySam(folder, [], [], options)

    monkeypatch.setattr("harness.measuring.tiny_sam.tiny_sam_and_scenes", study)
    draw = partial(superpixels, tmp_path / "photo.png", out=tmp_path / "out.png", source="sam", device="cpu")
    draw()
    told = json.loads(capsys.readouterr().out)
    model = SamSuperpixels(SamSuperpixels.Config(**options), open_sam(folder, device="cpu"))
    assert told["count"] == len(model.generate(photograph()).masks) > 0
    draw(options='{"pred_iou_thresh": 99}')  # what is given counts before the study's
    assert json.loads(capsys.readouterr().out)["count"] == 0 and asked == [1, 1]
    draw(options=json.dumps(options), sam=folder)  # weights that are named need no study
    assert json.loads(capsys.readouterr().out) == told and len(asked) == 2
    found = ["calibrate", str(tmp_path / "photo.png"), "--device", "cpu"]
    span = ["--low", "-9", "--high", "-9", "--count", str(told["count"])]
    bench([*found, *span], result_action="return_value")
    calibrated = json.loads(capsys.readouterr().out)
    assert calibrated["mean_count"] == told["count"] and len(asked) == 3


def test_bench_projector_prints_one_json_value_and_keeps_it(tmp_path, capsys):
    asked = ["projector", "--superpixels", "3", "--repeats", "1", "--out", str(tmp_path / "bench/it.json")]
    bench(asked, result_action="return_value")
    told = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "bench/it.json").read_text())
    assert kept["figures"] == told and {"command", "commit", "device", "versions"} <= kept.keys()
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
    command = ["superpixels", "--scenes", "2", "--points-per-side", "4", "--device", "cpu"]
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
