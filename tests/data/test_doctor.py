"""The doctor finds what is wrong, says how to mend it, and its exit status can be relied on."""

import importlib.util
import json
import os

import pytest
from config_files import ROOT, planned

from harness.cli import app
from harness.config import ConfigError
from harness.data import check as check_module
from harness.data.check import check_data
from harness.data.options import ReferData, ReferSet
from harness.data.sources import KnownSplit
from harness.running.doctor import examine


def toy(root, *splits) -> ReferData:
    part = ReferSet(name="toy", split_by="x", splits=splits or ("train", "val"))
    return ReferData(root=str(root), datasets=(part,))


def statuses(findings) -> list[str]:
    return [f.status for f in findings]


def test_right_counts_are_ok_and_wrong_ones_say_what_is_known(folder, monkeypatch):
    folder.write()
    known = {("toy", "x", "train"): KnownSplit(refs=1, images=1, expressions=2)}
    monkeypatch.setattr(check_module, "EXPECTED", known)
    train, val, images = check_data(toy(folder.root))
    assert (train.status, train.check) == ("ok", "toy (x) train: 1 refs, 1 images, 2 expressions")
    assert val.status == "note" and images.check == "toy: 2 of 2 images are there"
    known["toy", "x", "val"] = KnownSplit(refs=4)
    monkeypatch.setattr(check_module, "MISTAKEN", {("toy", "val", 1): "two splits"})
    wrong = check_data(toy(folder.root))[1]
    assert wrong.status == "wrong" and "known are 4 refs" in wrong.check and "two splits" in wrong.mend


def test_missing_images_files_and_splits_are_named(folder):
    folder.write()
    (folder.root / "images" / "deep" / "im2.png").unlink()
    last = check_data(toy(folder.root))[-1]
    assert last.status == "missing" and "1 of 2 images" in last.check and "im2.png" in last.check
    assert "fetch coco" in last.mend
    assert "no such split; there is train, val" in check_data(toy(folder.root, "testA"))[0].check
    (folder.root / "toy" / "instances.json").write_text("{")
    assert "not whole JSON" in check_data(toy(folder.root))[0].check
    (folder.root / "toy" / "instances.json").unlink()
    assert "instances.json is not there" in check_data(toy(folder.root))[0].check


def test_all_is_well_with_the_default_study(tmp_path):
    assert set(statuses(examine(planned(results=str(tmp_path))))) == {"ok"}


def test_weights_that_are_not_there_are_missing_and_local_ones_are_found(tmp_path):
    changes = {
        "models.start": None,
        "models.language.source": "some/never-heard-of-7b",
        "models.sam.source": str(tmp_path / "sam.pth"),
    }
    findings = examine(planned(set=changes, results=str(tmp_path)))
    missing = {f.check.split(":")[0]: f.mend for f in findings if f.status == "missing"}
    assert (
        "hf download some/never-heard-of-7b" in missing["language"] and "segment-anything" in missing["sam"]
    )
    (tmp_path / "sam.pth").write_bytes(b"weights")
    (tmp_path / "llm").mkdir()
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "llm" / name).touch()
    changes |= {"models.language.source": str(tmp_path / "llm"), "models.sam.sha256": "0" * 64}
    found = {f.check.split(":")[0]: f for f in examine(planned(set=changes, results=str(tmp_path)))}
    assert found["language"].status == "ok"
    assert found["sam"].status == "wrong" and "another sha256" in found["sam"].check


def test_weights_are_looked_for_where_the_jobs_look(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("LLMS", str(tmp_path / "llms"))
    (tmp_path / "llms" / "mine").mkdir(parents=True)
    for name in ("config.json", "model.safetensors"):
        (tmp_path / "llms" / "mine" / name).touch()
    (tmp_path / "sam.pth").write_bytes(b"weights")
    changes = {
        "models.language.source": "$LLMS/mine",
        "models.sam.source": "~/sam.pth",
        "models.start": "${LLMS}/start.safetensors",
    }
    plan = planned(set=changes, results=str(tmp_path / "results"))
    found = {f.check.split(":")[0]: f for f in examine(plan)}
    assert found["language"].status == found["sam"].status == "ok"
    assert found["start"].status == "missing" and "svp weights convert" in found["start"].mend
    run = plan.trained[0]
    assert plan.model_source(run, "language") == str(tmp_path / "llms/mine")
    assert plan.model_source(run, "sam") == str(tmp_path / "sam.pth")
    assert plan.start_file(run) == tmp_path / "llms/start.safetensors"
    monkeypatch.delenv("LLMS")
    found = {f.check.split(":")[0]: f for f in examine(planned(set=changes, results=str(tmp_path)))}
    assert found["language"].status == "missing" and "variable LLMS" in found["language"].check


def test_attention_disk_and_tracker_are_looked_at(tmp_path, monkeypatch):
    installed = importlib.util.find_spec
    monkeypatch.setattr(
        "harness.running.doctor.importlib.util.find_spec",
        lambda name: None if name == "mlflow" else installed(name),
    )
    findings = examine(planned(set={"models.language.attention": "eager"}, results=str(tmp_path)))
    assert any("workflow" in f.mend for f in findings if f.status == "missing")
    assert [f.status for f in findings if f.check.startswith("attention: eager")] == ["note"]
    with pytest.raises(ConfigError, match="'sdpa' or 'eager'"):
        planned(set={"models.language.attention": "flash_attention_2"})
    monkeypatch.undo()
    silent = examine(planned(tracking_uri="http://127.0.0.1:9", results=str(tmp_path)))
    assert [f.status for f in silent if f.check.startswith("tracker")] == ["wrong"]
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")  # where publishing would go
    silent = examine(planned(results=str(tmp_path)))
    assert [f.status for f in silent if f.check.startswith("tracker")] == ["wrong"]


def test_the_command_prints_the_agreed_json_and_status(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    monkeypatch.delenv("RIS_REAL_DATA", raising=False)
    assert app(["doctor", "--json"]) == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert all(set(f) == {"check", "status", "mend"} for f in findings)
    assert app(["doctor", "config/real_sample.yaml", "--json"]) == 2
    missing = [f for f in json.loads(capsys.readouterr().out)["findings"] if f["status"] == "missing"]
    assert "svp data fetch refcoco coco" in missing[0]["mend"] and "RIS_REAL_DATA" in missing[0]["mend"]
    assert app(["data", "check", "--root", str(tmp_path), "--json"]) == 2
    assert all(f["mend"] for f in json.loads(capsys.readouterr().out)["findings"])


def test_the_real_sample_is_whole(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    if not os.environ.get("RIS_REAL_DATA"):
        pytest.skip("RIS_REAL_DATA does not name the real-photograph sample")
    assert app(["data", "check", "config/real_sample.yaml"]) == 0
    assert "45 expressions, a sample" in capsys.readouterr().out
