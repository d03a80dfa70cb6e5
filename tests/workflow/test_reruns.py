"""What reruns after which edit: real Snakemake, real plan and hashes, stages that only write their files."""

import re
import zipfile
from pathlib import Path

import pytest

# Sums over all rows; they follow whatever changes below them.
POOL = "pooled = F.adaptive_avg_pool2d("
RETURN = "        return VisualTokens"
ALL_AFTER_FEATURES = {"train", "predict", "score", "time", "write", "draw", "publish"}
REPORTS = {
    "time every projector, alone on the machine",
    "write the tables",
    "draw the figures",
    "publish to MLflow",
}
OVERLAYS = "draw predictions over images"


def row(*runs: str, stages: tuple[int, ...] = (1, 2)) -> set[str]:
    """Jobs of trained runs."""
    words = {1: "stage 1 (language model frozen)", 2: "stage 2 (with LoRA)"}
    jobs = {f"train {run}, {words[stage]}" for run in runs for stage in stages}
    return jobs | {f"{stage} {run}" for run in runs for stage in ("predict", "score")}


def test_a_second_run_finds_nothing_to_do(finished):
    done = finished.snakemake()
    assert "Nothing to be done" in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("deleted", "again"),
    [
        ("tables/main.md", "write the tables"),
        ("figures/per_split.png", "draw the figures"),
        ("scores/mlp.base.auto.s0.parquet", "score mlp.base.auto.s0"),
    ],
)
def test_what_is_deleted_by_hand_is_made_again(edited, deleted, again):
    (edited.path / "results" / "default" / deleted).unlink()
    assert again in edited.planned()


def test_comments_docstrings_and_layout_rerun_nothing(edited):
    edited.edit("baselines/avg_pool.py", '"""Average pooling', '"""A mean over cells: average pooling')
    edited.edit("baselines/avg_pool.py", "        size = ", "        # coarser\n        size  =  ")
    edited.edit("harness/training/loop.py", "import json", "# lines of the log\nimport json")
    edited.edit("svp/projector.py", "\nclass ", "\n\n\nclass ")
    assert edited.planned() == set()


def test_an_edited_projector_is_trained_again_and_no_other(edited):
    edited.edit("baselines/avg_pool.py", POOL, POOL.replace("= ", "= 1.5 * "))
    jobs = edited.planned()
    assert jobs - {OVERLAYS} == row("avg_pool.base.36.s0", "avg_pool.base.9.s0") | REPORTS


def test_an_edited_base_is_followed_to_the_controls_that_stand_on_it(edited):
    edited.edit("svp/projector.py", RETURN, "        assert True\n" + RETURN)
    jobs = edited.planned()
    trained = {job for job in jobs if job.startswith("train ")}
    assert {re.sub(r"^train (\w+)\..*", r"\1", job) for job in trained} == {"svp", "svp_slic"}
    assert "predict text_blind.base.auto.s0" in jobs
    assert "predict mlp.base.auto.s0" not in jobs


def test_an_edited_superpixel_source_makes_its_own_again(edited):
    edited.edit("svp/superpixels/slic.py", "start_label=0", "start_label=1")
    jobs = edited.planned()
    assert {job.split("-")[0] for job in jobs if job.startswith("superpixels")} == {"superpixels slic"}
    assert jobs >= row("svp_slic.base.auto.s0")
    assert {job.split(".")[0] for job in jobs if job.startswith("train ")} == {"train svp_slic"}


def test_the_whole_grid_of_the_main_study_is_planned(finished):
    """At paper size, with its seeds, budgets and searches; what that costs, `svp bench plan` measures."""
    jobs = finished.planned("--configfile", "config/paper.yaml", "config/studies/main.yaml")
    assert len([job for job in jobs if job.startswith("predict ")]) > 200


def test_an_edited_metric_scores_again_and_trains_nothing(edited):
    edited.edit("harness/scoring/metrics.py", "def score_stage(", "NEW_CONSTANT = 1\n\n\ndef score_stage(")
    jobs = edited.planned()
    assert {job.split()[0] for job in jobs - REPORTS - {OVERLAYS}} == {"score"}
    assert len([job for job in jobs if job.startswith("score ")]) == 11


@pytest.mark.parametrize(
    ("setting", "kinds"),
    [
        ("title=Another", {"write", "draw", "publish"}),
        ("set={training.checkpoint_every: 7}", {"publish"}),
        (
            "set={training.stage2_steps: 77}",
            {"train", "predict", "score", "time", "write", "draw", "publish"},
        ),
        ("set={protocol.threshold: 0.5}", {"predict", "score", "write", "draw", "publish"}),
    ],
)
def test_a_value_reruns_what_it_can_change(finished, setting, kinds):
    jobs = finished.planned("--config", setting)
    assert {job.split()[0] for job in jobs} == kinds
    assert not any("stage 1" in job for job in jobs)


def test_another_study_shares_data_models_superpixels_and_features(finished):
    jobs = finished.planned("--config", "study=other")
    assert {job.split()[0] for job in jobs} == ALL_AFTER_FEATURES


def test_the_plan_of_one_row_asks_for_no_other_artefact(finished):
    jobs = finished.planned("--config", "study=single", "rows=[mlp]", "set={data.seed: 5}")
    shared = [job.split("-")[0] for job in jobs if job.split()[0] in ("features", "superpixels", "pretrain")]
    features = ["features patches", "features sam"]
    parts = ("language", "sam", "start", "vision")
    assert sorted(shared) == [*features, *(f"pretrain {part}" for part in parts)]


def test_a_search_stands_between_its_trials_and_the_runs(finished):
    search = "tuning={factors: [0.5, 2]}"
    jobs = finished.planned("--config", "study=searched", "effort=full", "rows=[mlp, oracle]", search)
    trials = [f"mlp.base.auto.s0-lr{rate}" for rate in ("0.0008", "0.0032")]
    chosen = {"choose the learning rate of mlp.base.auto"}
    trained = {job for job in jobs if job.startswith(("train", "choose"))}
    assert trained == chosen | {
        f"train {run}, {words}"
        for run in ("mlp.base.auto.s0", *trials)
        for words in ("stage 1 (language model frozen)", "stage 2 (with LoRA)")
    }
    assert {job for job in jobs if job.startswith("predict")} == {
        "predict mlp.base.auto.s0",
        "predict oracle.base.auto.s0",
    }


def test_a_row_that_is_another_by_another_name_waits_for_its_weights(finished):
    rows = "rows=[mlp, {name: mlp, variant: again}]"
    done = finished.snakemake("--config", "study=twins", rows, "--dry-run")
    reasons = dict(re.findall(r"^Job \d+: train (.*)\nReason: (.*)", done.stdout + done.stderr, re.M))
    for stage, words in ((1, "stage 1 (language model frozen)"), (2, "stage 2 (with LoRA)")):
        file = f"results/twins/runs/mlp.base.auto.s0/stage{stage}.safetensors"
        assert file in re.split(r"[:;,] ", reasons[f"mlp.again.auto.s0, {words}"])
        assert "again" not in reasons[f"mlp.base.auto.s0, {words}"]


def test_the_report_holds_the_table_and_every_figure(edited):
    done = edited.run("snakemake", "--report", "report.zip")  # without --cores, as one types it
    assert done.returncode == 0, done.stdout + done.stderr
    with zipfile.ZipFile(edited.path / "report.zip") as report:
        names = {Path(name).name for name in report.namelist()}
    assert {"main.md", "tokens_vs_giou.png", "per_split.png", "overlays.png", "loss_curves.png"} <= names


def test_a_dry_run_writes_nothing(edited):
    before = {path: path.stat().st_mtime_ns for path in (edited.path / "results").rglob("*")}
    edited.planned("--config", "study=never")
    assert {path: path.stat().st_mtime_ns for path in (edited.path / "results").rglob("*")} == before
