"""What cannot be run is refused in a sentence, before any job."""

import subprocess
import sys

import pytest
from checkout import ROOT, Checkout


@pytest.fixture(scope="module")
def fresh(tmp_path_factory):
    return Checkout.at(tmp_path_factory.mktemp("fresh") / "repo", fake_stages=True)


@pytest.mark.parametrize(
    ("setting", "sentence"),
    [
        ("sead=3", "unknown key 'sead'; did you mean 'seeds'?"),
        ("set={training.learning_rat: 1}", "unknown key 'learning_rat'; did you mean 'learning_rate'?"),
        ("set={trianing.batch: 1}", "unknown block in 'trianing.batch'; did you mean 'training'?"),
        ("rows=[avg_pol]", "unknown projector 'avg_pol'; did you mean 'avg_pool'?"),
        ("models=tinny", "there is no part 'tinny' in config/parts/models; did you mean 'tiny'?"),
        ("rows=[mlp, {name: text_blind, of: svpp}]", "'of' must name one of"),
        ("rows=[mlp, mlp]", "two rows are called mlp.base.auto.s0"),
    ],
)
def test_a_misspelt_setting_names_the_nearest_and_starts_nothing(fresh, setting, sentence):
    done = fresh.snakemake("--config", setting)
    assert done.returncode == 1
    assert sentence in done.stdout + done.stderr
    assert "Traceback" not in done.stdout + done.stderr
    assert not (fresh.path / "results").exists()


def test_missing_raw_data_stop_the_run_but_not_the_plan(fresh, tmp_path):
    study = ("--configfile", "config/real_sample.yaml")
    assert fresh.planned(*study)
    done = fresh.snakemake(*study)
    assert done.returncode != 0
    assert "RIS_REAL_DATA" in done.stdout + done.stderr
    done = fresh.snakemake(*study, "--config", f"data_root={tmp_path}/nowhere")
    assert done.returncode != 0
    assert f"{tmp_path}/nowhere" in done.stdout + done.stderr
    assert not (fresh.path / "results" / "shared").exists()


def test_a_row_that_cannot_be_run_stops_a_bare_snakemake_before_its_first_job(fresh):
    (fresh.path / "mine.yaml").write_text("study: mine\nrows: [mlp, {name: avg_pool, budget: 37}]\n")
    done = fresh.snakemake("--configfile", "mine.yaml")
    assert done.returncode != 0
    assert "these rows cannot be run" in done.stdout + done.stderr
    assert "avg_pool.base.37: " in done.stdout + done.stderr
    assert not (fresh.path / "results" / "shared").exists()


def test_planning_needs_none_of_the_heavy_packages():
    """Every Slurm job parses the Snakefile again."""
    code = (
        "import sys; from harness.planning import triggers; from harness.planning.plan import Plan; "
        "from harness.config.resolve import read_study; Plan.from_raw(read_study('config/default.yaml')); "
        "heavy = {'torch', 'pandas', 'numpy', 'scipy', 'transformers', 'matplotlib', 'mlflow'}; "
        "assert not heavy & set(sys.modules), heavy & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_help_needs_no_torch():
    code = "import sys; from harness import cli; assert 'torch' not in sys.modules; cli.app(['--help'])"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "stage" in done.stdout


def test_an_unknown_run_of_a_stage_is_one_sentence(finished):
    real = Checkout.at(finished.path.parent / "real_stages")
    config = str(finished.path / "results/default/config.json")
    done = real.run("harness.cli", "stage", "score", "--config", config, "--run", "svq")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith("svp: ") and "has no run 'svq'" in done.stderr
