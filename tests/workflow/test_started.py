"""What a start leaves on record: the host that holds the lock while it may, and the code that ran."""

import json
import os
import subprocess

import pytest
from checkout import Checkout
from config_files import planned

from harness.reporting.snapshot import provenance
from harness.running.started import LOCK_HOLDER, code_state, forget_holder, record_start


@pytest.fixture
def repository(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for words in (["init", "-q"], ["config", "user.email", "a@b.c"], ["config", "user.name", "a"]):
        subprocess.run(["git", *words], check=True)
    (tmp_path / "code.py").write_text("A = 1\n")
    (tmp_path / ".gitignore").write_text("ignored\n.snakemake/\nresults/\n")
    subprocess.run(["git", "add", "."], check=True)
    subprocess.run(["git", "commit", "-qm", "first"], check=True)
    return tmp_path


@pytest.mark.parametrize(
    ("path", "changes"),
    [
        ("code.py", True),
        ("my/soft_pool.py", True),  # git knows nothing of it, and a row may name it
        ("ignored", False),
        ("results/reference/default/tables/main.md", False),  # an earlier snapshot's
        ("README.md", False),
    ],
)
def test_changes_are_of_what_a_run_may_read(repository, path, changes):
    head = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    assert code_state() == {"commit": head, "uncommitted_changes": False}
    (repository / path).parent.mkdir(parents=True, exist_ok=True)
    (repository / path).write_text("B = 2\n")
    assert code_state() == {"commit": head, "uncommitted_changes": changes}


def test_without_git_it_is_unknown_and_no_error(repository, monkeypatch):
    monkeypatch.setenv("PATH", str(repository))
    assert code_state()["commit"] == "unknown"


def test_the_holder_is_forgotten_and_the_code_is_not(repository):
    plan = planned(results=str(repository / "results"))
    record_start(plan)
    assert json.loads(LOCK_HOLDER.read_text()) == {"host": os.uname().nodename, "pid": os.getpid()}
    forget_holder()
    forget_holder()
    assert not LOCK_HOLDER.exists()
    assert json.loads(plan.started_file.read_text()) == code_state()


def test_provenance_names_the_commits_that_trained(tmp_path):
    plan = planned(results=str(tmp_path), rows=["mlp", {"name": "avg_pool", "budget": 9}])
    first, second = (plan.log_file(run.id) for run in plan.trained)

    def log(file, *states):
        lines = [{"stage": 1, "step": 0, "event": "started", **state} for state in states]
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("".join(json.dumps(line) + "\n" for line in [*lines, {"stage": 1, "step": 9}]))

    old, new = ({"commit": letter * 40, "uncommitted_changes": False} for letter in "ab")
    log(first, old, new)
    assert "unknown" in provenance(plan, "make run")["trained_at"]  # nothing is known of the second row
    log(second, {**new, "uncommitted_changes": True})
    told = provenance(plan, "make run")["trained_at"]
    assert told == ["a" * 40, "b" * 40, "b" * 40 + " and changes"]


def test_snakemake_started_by_hand_leaves_them_too(tmp_path):
    checkout = Checkout.at(tmp_path / "repo", fake_stages=True)
    plan = planned()
    model = plan.model_dir(plan.keys(plan.trained[0]).model("vision")) / "done.json"
    # A job looks at what is on record while it runs.
    seen = tmp_path / "seen.json"
    stage = checkout.path / "harness" / "running" / "stages.py"
    look = f"import shutil; shutil.copy('.snakemake/svp-run.json', {str(seen)!r})\n"
    stage.write_text(stage.read_text().replace("def run_stage(", f"{look}\n\ndef run_stage(", 1))
    done = checkout.snakemake(str(model))
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(seen.read_text())["host"] == os.uname().nodename
    assert not (checkout.path / LOCK_HOLDER).exists()
    assert set(json.loads((checkout.path / plan.started_file).read_text())) == {
        "commit",
        "uncommitted_changes",
    }
