"""Publishing is idempotent, replaces what changed, and serves a store on disk or behind a server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pandas as pd
import pytest
from made_up_study import make_study

from harness.reporting.context import ReportContext
from harness.reporting.tables import tables_stage
from harness.tracking.mlflow_sink import publish, read_study

mlflow = pytest.importorskip("mlflow")

ROWS = {("dense", "base", "auto"): (0.66, 144), ("pool", "base", "36"): (0.6, 36)}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    study = make_study(
        tmp_path_factory.mktemp("tracked"),
        images=3,
        seeds=(0, 1),
        rows=ROWS,
        splits=[("toy", "val"), ("toy+", "val")],
    )
    context = ReportContext.from_study(study["config"], resamples=20)
    tables_stage(study["scores"], study["efficiency"], study["prepared"], study["study"] / "tables", context)
    (study["study"] / "figures").mkdir()
    (study["study"] / "figures" / "plot.png").write_bytes(b"not a real picture")
    return study["study"]


def copy_of(study, tmp_path):
    shutil.copytree(study, tmp_path / "results" / "default")
    return tmp_path / "results" / "default"


def runs_of(uri, name="default"):
    client = mlflow.MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(name)
    return client, {
        r.info.run_name: r for r in client.search_runs([experiment.experiment_id], max_results=100)
    }


@pytest.fixture(autouse=True)
def no_server(monkeypatch):
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


def test_publish_twice_adds_nothing_and_a_change_replaces(finished, tmp_path):
    study = copy_of(finished, tmp_path)
    first = publish(study)
    assert (first["created"], first["replaced"], first["unchanged"]) == (5, 0, 0)
    uri = f"sqlite:///{study.parent / 'mlflow.db'}"
    assert first["tracking_uri"] == uri
    client, runs = runs_of(uri)
    assert set(runs) == {
        "dense.base.auto.s0",
        "dense.base.auto.s1",
        "pool.base.36.s0",
        "pool.base.36.s1",
        "study",
    }
    run = runs["pool.base.36.s1"]
    record = next(r for r in read_study(study) if r.key == "pool.base.36.s1")
    finals = {name: value for name, value, step in record.metrics if name.startswith("toy")}
    assert finals and {k: run.data.metrics[k] for k in finals} == pytest.approx(finals)
    assert "toyplus/val/giou" in run.data.metrics and run.data.metrics["speedup_infer"] == pytest.approx(1.1)
    assert run.data.params["training.learning_rate"] == "0.0003" and run.data.params["budget"] == "36"
    logged = [json.loads(x) for x in (study / "runs/pool.base.36.s1/log.jsonl").read_text().splitlines()]
    curve = client.get_metric_history(run.info.run_id, "train/stage1/loss")
    stage1 = {x["step"]: x["loss"] for x in logged if x["stage"] == 1}
    assert {p.step: p.value for p in curve} == pytest.approx(stage1)
    files = {f.path for f in client.list_artifacts(runs["study"].info.run_id, "tables")}
    assert "tables/main.md" in files
    assert (study.parent / "mlartifacts").is_dir()

    second = publish(study)
    assert (second["created"], second["replaced"], second["unchanged"]) == (0, 0, 5)
    assert second["runs"] == first["runs"]

    with (study / "runs/pool.base.36.s1/log.jsonl").open("a") as stream:
        stream.write(json.dumps({"stage": 2, "step": 999, "loss": 0.1}) + "\n")
    third = publish(study)
    assert (third["created"], third["replaced"], third["unchanged"]) == (0, 1, 4)
    _, runs = runs_of(uri)
    assert len(runs) == 5 and runs["pool.base.36.s1"].info.run_id != run.info.run_id


def test_the_rate_that_a_row_was_trained_at_is_logged_not_the_recipes(finished, tmp_path):
    study = copy_of(finished, tmp_path)
    main = pd.read_csv(study / "tables" / "main.csv", dtype={"budget": str})
    main.loc[main["projector"] == "pool", "learning_rate"] = 9e-4
    main.to_csv(study / "tables" / "main.csv", index=False)
    rates = {r.key: r.params.get("training.learning_rate") for r in read_study(study)}
    assert rates["pool.base.36.s0"] == rates["pool.base.36.s1"] == "0.0009"
    assert rates["dense.base.auto.s0"] == "0.0003"


def test_a_publish_that_was_cut_off_is_mended(finished, tmp_path, monkeypatch):
    from harness.tracking import mlflow_sink

    study = copy_of(finished, tmp_path)
    publish(study)
    (study / "figures" / "plot.png").write_bytes(b"another picture")

    def dies(self, artifacts, content_hash):
        raise OSError("disk full")

    with monkeypatch.context() as patch, pytest.raises(OSError, match="disk full"):
        patch.setattr(mlflow_sink.MLflowTracker, "finish", dies)
        publish(study)
    mended = publish(study)
    assert mended["unchanged"] == 4 and mended["replaced"] == 1
    _, runs = runs_of(mended["tracking_uri"])
    assert len(runs) == 5


def test_two_writers_on_a_fresh_store(finished, tmp_path):
    studies = [copy_of(finished, tmp_path / name) for name in ("a", "b")]
    uri = f"sqlite:///{tmp_path / 'one.db'}"
    with ThreadPoolExecutor(2) as pool:
        done = list(pool.map(lambda s: publish(s, uri), studies))
    assert sorted(d["created"] for d in done) == [0, 5]


def test_what_others_publish_to_the_same_server_is_not_replaced(finished, tmp_path):
    mine, theirs = (copy_of(finished, tmp_path / name) for name in ("mine", "theirs"))
    log = theirs / "runs/pool.base.36.s1/log.jsonl"
    log.write_text(json.dumps({"stage": 2, "step": 999, "loss": 0.1}) + "\n")
    uri = f"sqlite:///{tmp_path / 'team.db'}"
    first = publish(mine, uri)
    second = publish(theirs, uri)
    assert (second["created"], second["replaced"], second["unchanged"]) == (1, 0, 4)
    assert publish(mine, uri)["runs"] == first["runs"]
    log.write_text(json.dumps({"stage": 2, "step": 999, "loss": 0.2}) + "\n")
    third = publish(theirs, uri)
    assert (third["created"], third["replaced"], third["unchanged"]) == (0, 1, 4)
    assert publish(mine, uri)["unchanged"] == 5


def test_a_password_in_the_servers_address_is_not_published(finished, tmp_path):
    study = copy_of(finished, tmp_path)
    config = json.loads((study / "config.json").read_text())
    config["study"]["tracking_uri"] = "https://me:hunter2@team.example/mlflow"
    (study / "config.json").write_text(json.dumps(config))
    params = next(r for r in read_study(study) if r.key == "study").params
    assert params["study.tracking_uri"] == "https://team.example/mlflow"


def test_a_file_store_is_refused_and_secrets_are_not_kept(finished, tmp_path):
    study = copy_of(finished, tmp_path)
    with pytest.raises(ValueError, match="must be sqlite"):
        publish(study, str(tmp_path / "mlruns"))
    with pytest.raises(ValueError) as refused:
        publish(study, "ftp://me:hunter2@host/x")
    assert "hunter2" not in str(refused.value)


def test_an_unfinished_study_is_refused_before_the_store_is_made(finished, tmp_path):
    study = copy_of(finished, tmp_path)
    (study / "scores" / "pool.base.36.s0.parquet").unlink()
    with pytest.raises(ValueError, match="pool.base.36.s0.parquet is missing"):
        publish(study)
    assert not (study.parent / "mlflow.db").exists()


@pytest.mark.workflow
def test_a_real_server(finished, tmp_path, monkeypatch):
    study = copy_of(finished, tmp_path)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [
        sys.executable,
        "-m",
        "mlflow",
        "server",
        "--host",
        "127.0.0.1",
        "--port",
        str(port),
        "--workers",
        "1",
    ]
    command += ["--backend-store-uri", f"sqlite:///{tmp_path / 's.db'}"]
    command += ["--artifacts-destination", str(tmp_path / "art")]
    environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    try:
        uri = f"http://127.0.0.1:{port}"
        for _ in range(120):
            try:
                with urllib.request.urlopen(f"{uri}/health", timeout=2) as answer:
                    if answer.status == 200:
                        break
            except OSError:
                time.sleep(0.5)
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        first, second = publish(study), publish(study)
        assert first["tracking_uri"] == uri and first["created"] == 5 and second["unchanged"] == 5
        client, runs = runs_of(uri)
        assert len(runs) == 5
        fetched = client.download_artifacts(runs["study"].info.run_id, "tables/scores.csv", str(tmp_path))
        assert open(fetched, "rb").read() == (study / "tables" / "scores.csv").read_bytes()
        assert not (study.parent / "mlflow.db").exists()
    finally:
        os.killpg(server.pid, 15)
        server.wait(20)
