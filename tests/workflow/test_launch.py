"""Starting again after a kill: the lock, jobs left behind, and the file lists the rules write out."""

import ast
import errno
import json
import os
import re
import shutil
import subprocess
import sys
import time

import psutil
import pytest
from checkout import ROOT

from harness import devices
from harness.config import ConfigError
from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.reporting.figures import FIGURE_NAMES
from harness.reporting.tables import TABLE_FILES
from harness.running import launch
from harness.running.launch import abandoned_jobs, lift_lock, workflows

SLEEP = "import time; time.sleep(60)"


@pytest.fixture
def start(tmp_path):
    """Starts a sleeping process whose command line ends with the given words."""
    started = []

    def go(*words, folder=tmp_path, code=SLEEP):
        started.append(subprocess.Popen([sys.executable, "-c", code, *words], cwd=folder))
        time.sleep(0.3)
        return started[-1]

    yield go
    for process in started:
        process.kill()
        process.wait()


def test_a_job_without_its_workflow_is_found_by_folder(start, tmp_path):
    (tmp_path / "here").mkdir()
    (tmp_path / "there").mkdir()
    mine = start("harness.cli", "stage", "train", folder=tmp_path / "here")
    start("harness.cli", "stage", "train", folder=tmp_path / "there")
    start("something", "else", folder=tmp_path / "here")
    assert [p.pid for p in abandoned_jobs(tmp_path / "here")] == [mine.pid]
    assert workflows(tmp_path / "here") == []


def test_processes_that_share_a_job_and_what_they_start_are_found_too(start, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    worker = start("harness.running.processes", "config.json", "mlp.base.auto.s0", "stage1")
    code = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {SLEEP!r}], cwd='elsewhere')"
    job = start("harness.cli", "stage", "train", code=code)
    while not (children := psutil.Process(job.pid).children()):
        time.sleep(0.05)
    found = abandoned_jobs(tmp_path)
    assert sorted(p.pid for p in found) == sorted([worker.pid, job.pid, children[0].pid])
    for process in found:
        process.kill()


def test_the_lock_of_a_killed_run_is_lifted_and_its_job_is_stopped(edited, start):
    locks = edited.path / ".snakemake" / "locks"
    locks.mkdir(exist_ok=True)
    job = start("harness.cli", "stage", "train", folder=edited.path)
    (locks / "0.output.lock").write_text("results/default/published.json\n")
    (edited.path / "results/default/published.json").unlink()
    assert "locked" in "".join(edited.snakemake().stderr.lower().split("\n"))

    done = edited.run("harness.cli", "run")
    assert done.returncode == 0, done.stderr
    assert "lifting the lock" in done.stderr
    assert f"stopping jobs of an interrupted run (processes {job.pid})" in done.stderr
    assert not psutil.pid_exists(job.pid) or job.poll() is not None


def test_a_running_workflow_keeps_its_lock(edited):
    fake = edited.path / "snakemake"
    fake.write_text(SLEEP)
    running = subprocess.Popen([sys.executable, str(fake)], cwd=edited.path)
    try:
        time.sleep(0.3)
        done = edited.run("harness.cli", "run")
        assert done.returncode == 1
        assert f"a Snakemake (process {running.pid}) already works in" in done.stderr
        assert running.poll() is None
    finally:
        running.kill()
        running.wait()


@pytest.mark.parametrize("host", ["elsewhere", None])
def test_a_lock_is_lifted_by_the_host_that_holds_it_alone(tmp_path, monkeypatch, host):
    locks, record = tmp_path / ".snakemake/locks", tmp_path / ".snakemake/svp-run.json"
    locks.mkdir(parents=True)
    called, told = [], []
    monkeypatch.setattr(launch.subprocess, "run", lambda command, **_: called.append(command))
    record.write_text(json.dumps({"host": host or os.uname().nodename, "pid": 17}))
    lift_lock(tmp_path, ["snakemake"], told.append)  # nothing is locked: whose record it is does not matter
    assert not called
    (locks / "0.output.lock").touch()
    if host:
        with pytest.raises(ConfigError, match=rf"on elsewhere \(process 17\), .* delete {record} and run"):
            lift_lock(tmp_path, ["snakemake"], told.append)
        assert not called and not told
        record.unlink()
    lift_lock(tmp_path, ["snakemake"], told.append)
    assert called == [["snakemake", "--unlock", "--quiet"]]
    assert told == ["lifting the lock of an interrupted run"]


@pytest.fixture
def ended(monkeypatch, tmp_path):
    """Runs a study whose Snakemake does something and ends with a status; what was told."""

    def run(status, snakemake):
        def called(command, **_):
            snakemake()
            return subprocess.CompletedProcess(command, status)

        monkeypatch.chdir(ROOT)
        monkeypatch.setattr(launch, "LOCK_HOLDER", tmp_path / ".snakemake/svp-run.json")
        monkeypatch.setattr(launch.subprocess, "run", called)
        monkeypatch.setattr(Plan, "study_dir", tmp_path)
        monkeypatch.setattr("harness.running.refusals.check_rows", lambda _: None)
        monkeypatch.setattr(launch, "lift_lock", lambda *_: None)
        told = []
        assert launch.run_study(ROOT / "config/default.yaml", say=told.append) == status
        return "\n".join(told)

    return run


@pytest.mark.parametrize(("locked", "left"), [(False, False), (True, True)])
def test_the_host_is_on_record_while_the_lock_may_be_held(ended, tmp_path, locked, left):
    record, seen = tmp_path / ".snakemake/svp-run.json", []

    def killed():
        seen.append(json.loads(record.read_text()))
        (tmp_path / ".snakemake/locks").mkdir()
        if locked:
            (tmp_path / ".snakemake/locks/0.output.lock").touch()

    ended(1, killed)
    assert seen == [{"host": os.uname().nodename, "pid": os.getpid()}] and record.exists() == left


@pytest.mark.parametrize("before", [False, True])
def test_a_table_that_was_finished_before_a_failure_is_printed(ended, tmp_path, capsys, before):
    table = tmp_path / "tables/main.md"
    table.parent.mkdir()
    if before:
        table.write_text("| an old table |")
        os.utime(table, (0, 0))
    said = ended(1, lambda: table.write_text("| a table |"))
    assert capsys.readouterr().out == "| a table |\n"
    assert f"tables:  {table.parent}" in said and f"figures: {tmp_path / 'figures'}" in said
    assert "later job (figures, MLflow) failed" in said.splitlines()[-1] and "MLflow: " not in said


def test_a_table_of_an_earlier_run_is_not_printed_after_a_failure(ended, tmp_path, capsys):
    (tmp_path / "tables").mkdir()
    (tmp_path / "tables/main.md").write_text("| an old table |")
    assert "finished" not in ended(1, lambda: None) and not capsys.readouterr().out


def test_run_prints_the_table_and_where_everything_lies(edited):
    (edited.path / "results/default/tables/main.md").write_text("| a table |")
    done = edited.run("harness.cli", "run")
    assert done.returncode == 0, done.stderr
    assert "| a table |" in done.stdout
    assert "results/default/figures" in done.stderr and "MLflow" in done.stderr


@pytest.mark.parametrize(
    ("study", "gpus", "profile", "expected"),
    [
        ("small", 1, None, ["--resources", "gpu=1"]),
        ("small", 4, None, ["--resources", "gpu=4"]),
        ("small", 0, None, []),  # each job says that there is none
        ("small", 1, "slurm", ["--profile", "slurm"]),
        ("default", 1, None, []),
    ],
)
def test_jobs_of_one_machine_share_its_gpus(monkeypatch, tmp_path, study, gpus, profile, expected):
    called = []

    def snakemake(command, **_):
        called.append(command)
        return subprocess.CompletedProcess(command, 1)

    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(devices, "usable_gpus", lambda: gpus)
    monkeypatch.setattr(launch.subprocess, "run", snakemake)
    monkeypatch.setattr(launch, "LOCK_HOLDER", tmp_path / "svp-run.json")
    monkeypatch.setattr(Plan, "check_inputs", lambda _: None)
    for name in ("_check_weights", "lift_lock", "_add_minutes"):
        monkeypatch.setattr(launch, name, lambda *_: 0.0)
    told = []
    assert launch.run_study(ROOT / f"config/{study}.yaml", profile=profile, say=told.append) == 1
    (command,) = called
    words = command[command.index("--configfile") + 2 : command.index("--rerun-incomplete")]
    assert words == expected and " ".join(command) in told[0]


def test_the_last_words_of_each_failed_job_are_gathered(tmp_path):
    """From the log of a real Snakemake, with a job that fails, one that says nothing and one that is well."""
    (tmp_path / "Snakefile").write_text(
        "rule all:\n    input: 'a', 'b', 'c'\n"
        "rule some:\n    output: '{name}'\n    log: 'logs/{name}.log'\n"
        "    shell: 'sh {wildcards.name}.sh &> {log}'\n"
    )
    for name, script in (("a", "echo one; echo why; exit 1"), ("b", "exit 2"), ("c", "touch c")):
        (tmp_path / f"{name}.sh").write_text(script)
    began = time.time()
    command = [sys.executable, "-m", "snakemake", "--cores", "2", "--keep-going", "--show-failed-logs"]
    assert subprocess.run(command, cwd=tmp_path, capture_output=True).returncode == 1
    told = launch.failed_jobs(tmp_path, began)
    assert sorted(told) == ["logs/a.log: why", "logs/b.log, which says nothing"]
    assert launch.failed_jobs(tmp_path, time.time() + 60) == []


@pytest.mark.parametrize(
    ("deltas", "said"),
    [
        ({"models.sam.source": "{}/sam.pth"}, "models: sam: {}/sam.pth is not there"),
        ({"models.vision.source": "{}/clip"}, "models: vision: {}/clip is not there"),
        ({"models.language.source": "$NOBODY_SET_THIS/llm"}, "models: language: .*NOBODY_SET_THIS"),
        ({"models.language.source": "a-hub/name"}, None),  # it may be fetched when it is needed
        ({}, None),
    ],
    ids=str,
)
def test_weights_that_are_not_there_are_told_before_any_job(tmp_path, deltas, said):
    values = {"models.start": None} | {key: value.format(tmp_path) for key, value in deltas.items()}
    plan = Plan.from_raw({**read_study(ROOT / "config/studies/smoke.yaml"), "rows": ["mlp"], "set": values})
    if said is None:
        launch._check_weights(plan)
        return
    with pytest.raises(ConfigError, match=said.format(tmp_path)):
        launch._check_weights(plan)


def test_a_study_without_a_name_runs_into_the_folder_of_its_file(edited):
    (edited.path / "mine.yaml").write_text("rows: [mlp]\n")
    done = edited.run("harness.cli", "run", "mine.yaml", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "results/mine/published.json" in done.stdout + done.stderr


def test_several_files_are_run_as_one_study(edited):
    (edited.path / "mine.yaml").write_text("rows: [mlp]\n")
    (edited.path / "other.yaml").write_text("seeds: [7]\n")
    done = edited.run("harness.cli", "run", "mine.yaml", "other.yaml", "-n")
    assert done.returncode == 0, done.stderr
    said = done.stdout + done.stderr
    assert "results/other/published.json" in said and "mlp.base.auto.s7" in said and "svp.base" not in said


@pytest.mark.parametrize(
    ("study", "words", "sentence"),
    [
        ("rows: [mlp, {name: avg_pool, budget: 500}]", (), "these rows cannot be run"),
        ("{data: real_sample, superpixels: slic, rows: [mlp]}", (), "RIS_REAL_DATA"),
        ("rows: [mlp]", ("--profile", "nowhere"), "nowhere"),
    ],
)
def test_a_dry_run_refuses_what_a_run_would(edited, study, words, sentence):
    (edited.path / "mine.yaml").write_text(study)
    done = edited.run("harness.cli", "run", "mine.yaml", "--dry-run", *words)
    assert done.returncode == 1
    assert sentence in done.stderr and "Traceback" not in done.stderr and "published.json" not in done.stdout


def test_two_processes_are_never_at_one_job(tmp_path, monkeypatch):
    from harness.running.stages import _only_one

    monkeypatch.chdir(tmp_path)
    with _only_one("train-x-1"):
        with pytest.raises(ValueError, match="is at train-x-1 already"), _only_one("train-x-1"):
            pass
        with _only_one("train-x-2"):
            pass
    with _only_one("train-x-1"):
        pass


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOTSUP, errno.ENOLCK])
def test_a_file_system_without_locks_stops_no_job(tmp_path, monkeypatch, capsys, number):
    from harness.running import stages

    def refused(*_):
        raise OSError(number, os.strerror(number))

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(stages.fcntl, "flock", refused)
    done = []
    with stages._only_one("train-x-1"):
        done.append(True)
    said = capsys.readouterr().err
    assert done and "train-x-1.lock cannot be locked" in said and os.strerror(number) in said


def test_rules_declare_what_the_reports_write(request):
    text = (request.config.rootpath / "workflow" / "Snakefile").read_text()
    lists = {
        name: ast.literal_eval(text.split(f"{name} = ", 1)[1].split("]", 1)[0] + "]")
        for name in ("FIGURES", "TABLES")
    }
    assert lists["FIGURES"] == list(FIGURE_NAMES)
    assert sorted([*lists["TABLES"], "main.md"]) == sorted(TABLE_FILES)


def test_what_a_shell_line_is_given_is_quoted():
    for rules in (ROOT / "workflow" / "rules").glob("*.smk"):
        for line in re.findall(r'"svp stage .*"', rules.read_text()):
            given = set(re.findall(r"\{([^}]*)\}", line)) - {"params.stage"}  # a number of the rule's own
            assert given and all(each.endswith(":q") for each in given), f"{rules.name}: {line}"


def test_snapshot_copies_tables_and_says_what_made_them(edited):
    kept = ROOT / "results/reference/default/tables"
    shutil.copytree(kept, edited.path / "results/default/tables", dirs_exist_ok=True)
    (edited.path / "results/default/tables/main.md").write_text("| the default table |")
    (edited.path / "results/default/minutes.json").write_text("[12.25, 3.5]")  # it was interrupted once
    done = edited.run("harness.cli", "snapshot", "--command", "make run")
    assert done.returncode == 0, done.stderr
    folder = edited.path / "results/reference/default"
    assert (folder / "tables/scores.csv").read_bytes() == (
        edited.path / "results/default/tables/scores.csv"
    ).read_bytes()
    assert "| the default table |" in (edited.path / "README.md").read_text()
    assert "## default: " in (folder.parent / "README.md").read_text()
    made_by = json.loads((folder / "provenance.json").read_text())
    assert made_by["command"] == "make run" and made_by["versions"]["torch"]
    assert made_by["minutes"] == 15.8
