"""The Slurm profile: what it must and must not say, and a study through a real Slurm where there is one."""

import shutil
import subprocess

import pytest
import yaml
from checkout import ROOT, Checkout

from harness.plan import Plan
from harness.study import read_study

PROFILE = ROOT / "slurm" / "config.yaml"


def test_the_profile_polls_with_squeue_and_keeps_retries_to_itself():
    profile = yaml.safe_load(PROFILE.read_text())
    assert profile["executor"] == "slurm" and profile["jobs"] > 1
    assert profile["slurm-status-command"] == "squeue"
    assert "--exclusive" in profile["set-resources"]["efficiency"]["slurm_extra"]  # it measures time
    for rules in (ROOT / "workflow" / "rules").glob("*.smk"):
        assert "retries:" not in rules.read_text(), f"{rules.name}: the jobs inside would retry once more"
    # a workflow profile would silently replace the executor
    assert not (ROOT / "workflow" / "profiles").exists() and not (ROOT / "profiles").exists()


def test_every_rule_asks_slurm_for_memory_time_and_cpus():
    for rules in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = rules.read_text()
        for wanted in ("mem_mb", "runtime", "cpus_per_task"):
            assert wanted in text or rules.stem == "publish", f"{rules.name} has no {wanted}"


def _slurm_is_up() -> bool:
    if shutil.which("sinfo") is None:
        return False
    return subprocess.run(["sinfo", "-h"], capture_output=True, timeout=20).returncode == 0


@pytest.mark.slurm
@pytest.mark.skipif(not _slurm_is_up(), reason="no Slurm here: tests/slurm/slurm_up.sh starts one (root)")
def test_jobs_that_wait_for_each_other_go_through_slurm(tmp_path):
    """Two jobs, the second needing the first; a whole study takes minutes and is run by CI."""
    checkout = Checkout.at(tmp_path / "repo", fake_stages=True)
    plan = Plan.from_raw(read_study(ROOT / "config/default.yaml", ROOT), ROOT)
    model = plan.model_dir(plan.keys(plan.trained[0]).model("vision")) / "done.json"
    done = checkout.snakemake(str(model), "--profile", "slurm")
    assert done.returncode == 0, done.stdout + done.stderr
    assert (checkout.path / model).is_file()
    assert "SLURM jobid" in done.stderr
    assert "Nothing to be done" in checkout.snakemake(str(model)).stderr
