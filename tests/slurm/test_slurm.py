"""The Slurm profile: what it must and must not say, and a study through a real Slurm where there is one."""

import json
import re
import shutil
import subprocess
import sys

import pytest
import yaml
from checkout import ROOT, Checkout

from harness.config.resolve import read_study
from harness.planning.plan import Plan

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


def profile_with(monkeypatch, **variables):
    yte = pytest.importorskip("yte")  # what Snakemake reads a profile with
    for name in ("PARTITION", "GPU_PARTITION", "ACCOUNT", "TRAIN_HOURS"):
        monkeypatch.delenv(f"SVP_SLURM_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    return yte.process_yaml(PROFILE.read_text())


def test_jobs_that_run_models_can_have_a_partition_of_their_own(monkeypatch):
    one = profile_with(monkeypatch, SVP_SLURM_PARTITION="all")
    assert one["default-resources"]["slurm_partition"] == "all"
    assert one["set-resources"] == {"efficiency": {"slurm_extra": "'--exclusive'"}}
    two = profile_with(monkeypatch, SVP_SLURM_PARTITION="all", SVP_SLURM_GPU_PARTITION="a100")
    moved = {rule for rule, given in two["set-resources"].items() if given.get("slurm_partition") == "a100"}
    texts = [path.read_text() for path in (ROOT / "workflow" / "rules").glob("*.smk")]
    assert two["default-resources"]["slurm_partition"] == "all"
    with_gpus = {
        name
        for text in texts
        if re.search(r"^ +gpu=", text, re.M)
        for first, last in re.findall(r"^(?:use )?rule (\w+)(?: as (\w+))?", text, re.M)
        for name in [last or first]
    }
    assert moved == with_gpus
    assert two["set-resources"]["efficiency"]["slurm_extra"] == "'--exclusive'"


def test_training_can_be_given_the_clusters_time_limit(monkeypatch):
    told = profile_with(monkeypatch, SVP_SLURM_TRAIN_HOURS="24")["set-resources"]
    assert told == {
        "efficiency": {"slurm_extra": "'--exclusive'"},
        "train_stage1": {"runtime": 1440},
        "train_stage2": {"runtime": 1440},
    }
    both = profile_with(monkeypatch, SVP_SLURM_TRAIN_HOURS="0.5", SVP_SLURM_GPU_PARTITION="g")[
        "set-resources"
    ]
    assert both["train_stage1"] == {"runtime": 30, "slurm_partition": "g"}
    assert both["features"] == {"slurm_partition": "g"}


def test_every_rule_asks_slurm_for_memory_time_and_cpus():
    for rules in (ROOT / "workflow" / "rules").glob("*.smk"):
        text = rules.read_text()
        for wanted in ("mem_mb", "runtime", "cpus_per_task"):
            assert wanted in text or rules.stem == "publish", f"{rules.name} has no {wanted}"


# Plans a study as Snakemake does, and has its Slurm plugin write what sbatch would be told of every job.
SUBMITTED = """
import json, sys
from pathlib import Path
from snakemake.api import SnakemakeApi
from snakemake.settings.types import ConfigSettings, OutputSettings, Quietness, ResourceSettings
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

names = dict.fromkeys(("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir"), "")
study, answer = map(Path, sys.argv[1:])
with SnakemakeApi(OutputSettings(quiet={Quietness.ALL}, dryrun=True)) as api:
    config, cores = ConfigSettings(configfiles=[study]), ResourceSettings(cores=64)
    made = api.workflow(resource_settings=cores, config_settings=config, snakefile=Path("Snakefile"))
    made.dag().execute_workflow(executor="dryrun")
    jobs = made._workflow.dag.jobs
    told = [(j.rule.name, get_submit_command(j, names) + set_gres_string(j)) for j in jobs]
    answer.write_text(json.dumps(told))
"""


@pytest.fixture(scope="module")
def submitted(tmp_path_factory):
    """``submitted(study)``: rule and options of ``sbatch``, of every job of ``config/<study>.yaml``."""
    folder = tmp_path_factory.mktemp("submitted")
    checkout = Checkout.at(folder / "repo")

    def ask(study):
        words = [sys.executable, "-c", SUBMITTED, f"config/{study}.yaml", str(folder / study)]
        done = subprocess.run(
            words, cwd=checkout.path, env=checkout.environment(), capture_output=True, text=True, timeout=600
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return [
            (rule, options) for rule, options in json.loads((folder / study).read_text()) if rule != "all"
        ]

    return ask


def asked(options, name):
    """The number that ``sbatch`` is told for an option, ``None`` where it is told nothing."""
    found = re.search(rf"{name}[ =](\d+)", options)
    return int(found[1]) if found else None


def test_what_sbatch_is_told_at_full_and_at_tiny_size(submitted):
    paper, tiny = submitted("paper"), submitted("default")
    assert {asked(o, "--mem") for rule, o in paper if rule == "prepare"} == {6000}
    assert {asked(o, "--mem") for rule, o in tiny if rule == "prepare"} == {2000}
    # without it Slurm may spread a job's GPUs over nodes, and all of its processes start on the first
    many = [o for _, o in paper if asked(o, "--gpus")]
    assert {asked(o, "--gpus") for o in many} == {1, 8} and all(asked(o, "--nodes") == 1 for o in many)
    assert all(asked(o, "--cpus-per-task") == 8 * asked(o, "--gpus") for o in many)  # torch_threads: 8
    rest = [o for _, o in (*paper, *tiny) if not asked(o, "--gpus")]
    assert all(asked(o, "--ntasks") == 1 and asked(o, "--nodes") in (1, None) for o in rest)
    runs = sum(rule == "score" for rule, _ in paper)
    assert {asked(o, "--mem") for rule, o in paper if rule == "tables"} == {1500 + 24 * runs}


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
