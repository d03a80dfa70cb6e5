"""Several GPUs in one machine: each job has cards of its own, as many as its rule asks for."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest
from checkout import ROOT

from harness import devices
from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.running import stages

JOB = """
import os, sys
import harness.running.stages
from harness.devices import claim_cards
claim_cards(int(sys.argv[1]), cards=int(sys.argv[2]), poll_s=0.1)
assert "torch" not in sys.modules, "it would be at the first card in every job"
print(os.environ.get("CUDA_VISIBLE_DEVICES", "every"), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def job(tmp_path):
    """Starts a process that asks for some of a machine's cards; the process, and what it sees."""
    started = []

    def start(count, cards, read=True, **environment):
        kept = {k: v for k, v in os.environ.items() if k != "CUDA_VISIBLE_DEVICES"}
        process = subprocess.Popen(
            [sys.executable, "-c", JOB, str(count), str(cards)],
            cwd=tmp_path,
            env={**kept, "PYTHONPATH": str(ROOT), **environment},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip() if read else ""

    yield start
    for process in started:
        process.kill()
        process.communicate()


def test_two_jobs_have_different_cards_and_a_third_waits_for_one(job):
    (one, first), (two, second) = job(1, 2), job(1, 2)
    assert (first, second) == ("0", "1")
    three, _ = job(1, 2, read=False)
    said = three.stderr.readline()
    assert f"process {one.pid} on {os.uname().nodename}, {two.pid} on" in said
    assert "waiting for 1 of 2 GPUs" in said and "to be stopped" in said
    two.kill()
    assert three.stdout.readline().strip() == "1"


def test_a_job_of_several_processes_has_several_cards(job):
    assert [job(2, 4)[1], job(1, 4)[1]] == ["0,1", "2"]
    waiting, _ = job(2, 4, read=False)
    assert "waiting for 2 of 4" in waiting.stderr.readline()
    assert job(1, 4)[1] == "3"  # the one that waits keeps nothing


def test_a_killed_job_gives_its_card_back(job):
    killed, _ = job(1, 2)
    job(1, 2)
    killed.kill()
    killed.wait()
    assert job(1, 2)[1] == "0"


@pytest.mark.parametrize("given", ["3", ""])
def test_what_slurm_says_is_left_alone(job, tmp_path, given):
    assert job(1, 4, CUDA_VISIBLE_DEVICES=given)[1] == given
    assert not (tmp_path / "work").exists()


@pytest.mark.parametrize(("count", "cards"), [(0, 4), (1, 0), (4, 2)])
def test_nothing_is_taken_where_there_is_no_choice(job, tmp_path, count, cards):
    """More cards than there are is refused when torch has counted them."""
    assert job(count, cards)[1] == "every"
    assert not (tmp_path / "work").exists()


def test_without_locks_a_job_goes_on_with_all_cards_and_says_so(tmp_path, monkeypatch, capsys):
    def refused(*_):
        raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))

    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(devices.fcntl, "flock", refused)
    devices.claim_cards(1, cards=2)
    assert "CUDA_VISIBLE_DEVICES" not in os.environ
    assert "gpu-* cannot be locked (Function not implemented)" in capsys.readouterr().err


def test_cards_are_counted_by_the_files_of_the_driver(tmp_path):
    for name in ("nvidia0", "nvidia1", "nvidia10", "nvidiactl", "nvidia-uvm", "nvidia-caps", "null"):
        (tmp_path / name).touch()
    assert devices.count_cards(tmp_path) == 3
    assert devices.count_cards(tmp_path / "nowhere") == 0


def test_each_stage_asks_for_the_cards_of_its_rule(tmp_path, monkeypatch):
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # a stage sets them
    monkeypatch.chdir(tmp_path)
    changes = {"models.gpu": True, "training.processes": 2, "training.images_per_forward": 1}
    raw = read_study(ROOT / "config/default.yaml", ROOT)
    raw |= {"rows": ["svp"], "effort": "full", "tuning": {"factors": [0.5, 1]}, "results": str(tmp_path)}
    plan = Plan.from_raw({**raw, "set": {**raw.get("set", {}), **changes}}, ROOT)
    plan.save(plan.config_file)
    asked: list[int] = []
    monkeypatch.setattr(devices, "claim_cards", asked.append)
    for table in (stages._SHARED, stages._RUN, stages._STUDY):
        for name in table:
            monkeypatch.setitem(table, name, lambda *_: None)
    for name in ("_train", "_tune"):
        monkeypatch.setattr(stages, name, lambda *_: None)
    run = plan.trained[0]
    keys = plan.keys(run)
    trial = next(iter(plan.trials[run.row]))
    wanted = {
        "prepare": ({"key": keys.data}, []),
        "features": ({"key": keys.feature("sam")}, [1]),
        "superpixels": ({"key": keys.superpixels}, [1]),
        "train": ({"run": trial, "stage": 1}, [2]),
        "tune": ({"run": run.row}, [1]),
        "predict": ({"run": run.id}, [2]),
        "score": ({"run": run.id}, []),
        "efficiency": ({}, [1]),
        "tables": ({}, []),
    }
    for name, (named, expected) in wanted.items():
        asked.clear()
        stages.run_stage(name, Path(plan.config_file), **named)
        assert asked == expected, name
