"""`paper.yaml` and `small.yaml`: the published recipe, planned without weights, data or variables."""

from pathlib import Path

import pytest

from harness.config import ConfigError
from harness.config.resolve import load_study, read_study, resolve_study
from harness.planning import jobs
from harness.planning.keys import pretrained
from harness.planning.plan import Plan

ROOT = Path(__file__).resolve().parents[2]
SIZES = ("paper", "small")


def planned(name: str, **changes) -> Plan:
    return Plan.from_raw({**read_study(ROOT / "config" / f"{name}.yaml", ROOT), **changes}, ROOT)


def test_paper_is_glamms_recipe():
    # facts of groundingLMM's train.py; 3,500 + 1,750 iterations are the paper's own
    for run in planned("paper").trained:
        training, language = run.training, run.models.language
        assert (training.stage1_steps, training.stage2_steps) == (3500, 1750)
        assert (training.learning_rate, training.warmup_steps, training.betas) == (3e-4, 100, (0.9, 0.95))
        assert (training.images_per_forward, training.processes, training.forwards_per_step) == (2, 8, 80)
        assert (training.ce_weight, training.bce_weight, training.dice_weight) == (1.0, 2.0, 0.5)
        assert (training.expressions_per_image, training.grad_clip, training.dtype) == (3, 1.0, "bfloat16")
        assert (language.lora_rank, language.lora_alpha, language.lora_dropout) == (8, 16, 0.05)
        assert language.lora_targets == ("q_proj", "v_proj")
        assert run.models.vision.grid == (24, 24) and run.models.sam.kind == "vit_h"


@pytest.mark.parametrize("name", SIZES)
def test_both_sizes_plan_without_weights_and_data(name, monkeypatch):
    for variable in ("RIS_DATA", "RIS_WEIGHTS"):
        monkeypatch.delenv(variable, raising=False)
    plan = planned(name)
    run = plan.trained[0]
    assert not any(pretrained(run) for run in plan.runs.values())
    assert plan.study_dir == Path("results") / f"{name}-default"
    with pytest.raises(ConfigError, match="sam: .* RIS_WEIGHTS"):
        plan.model_source(run, "sam")
    with pytest.raises(ConfigError, match="RIS_DATA"):
        plan.check_inputs()


@pytest.mark.parametrize("name", SIZES)
def test_openclip_differs_from_clip_in_its_weights_alone(name):
    rows = [{"name": "mlp", "variant": v, "set": {"models.vision": v}} for v in ("clip", "openclip")]
    clip, openclip = (run.models.vision for run in planned(name, rows=rows).trained)
    assert clip.source.startswith("openai/clip") and openclip.source.startswith("laion/CLIP")
    assert openclip == clip.model_copy(update={"source": openclip.source})


def test_where_weights_lie_changes_no_key(monkeypatch):
    plan, again = planned("paper"), planned("paper")
    monkeypatch.setenv("RIS_WEIGHTS", "one")
    run = plan.trained[0]
    key, source = plan.keys(run).model("sam"), plan.model_source(run, "sam")
    monkeypatch.setenv("RIS_WEIGHTS", "another")
    assert (again.keys(run).model("sam"), source) == (key, str(Path("one") / "sam_vit_h_4b8939.pth"))


def test_superpixels_follow_the_size_of_the_models():
    def options(name: str) -> tuple[dict, dict]:
        runs = {run.projector: run.superpixels.options for run in planned(name).trained if run.superpixels}
        return runs["svp"], runs["svp_slic"]

    assert options("paper") == ({}, {})  # the sources' own presets
    assert options("default")[1]["segments"] == 12
    row = {"name": "svp", "variant": "slic", "set": {"superpixels": "slic"}}
    assert planned("paper", rows=["mlp", row]).runs["svp.slic.auto.s0"].superpixels.options == {}


def test_quick_is_a_tenth_at_these_sizes():
    for name in SIZES:
        training = planned(name, effort="quick").trained[0].training
        assert (training.stage1_steps, training.stage2_steps) == (350, 175)


def test_jobs_ask_for_what_the_size_needs():
    tiny, paper = planned("default"), planned("paper")
    small_run, run = tiny.trained[0], paper.trained[0]
    assert (jobs.gpus(small_run, small_run.training.workers), jobs.memory_mb(small_run, 3000)) == (0, 3000)
    assert (jobs.gpus(run), jobs.gpus(run, run.training.workers)) == (1, 8)
    assert (jobs.cpus(small_run), jobs.cpus(run), jobs.cpus(run, run.training.workers)) == (1, 8, 64)
    assert (jobs.prediction_processes(small_run), jobs.prediction_processes(run)) == (1, 8)
    assert jobs.memory_mb(run, 3000, jobs.prediction_processes(run)) == 8 * 48_000
    oracle = planned("paper", rows=["mlp", "oracle"]).runs["oracle.base.auto.s0"]
    assert jobs.prediction_processes(oracle) == 1


def test_what_the_most_jobs_wait_for_is_pretrained_first():
    plan = planned("default")
    keys, parts = plan.keys(plan.trained[0]), ("sam", "language", "vision", "start")
    first = {part: jobs.pretrain_priority(keys.model(part)) for part in parts}
    assert first["sam"] > first["language"] > first["vision"]
    assert min(first.values()) > max(jobs.train_priority(run) for run in plan.trained)


def test_what_grows_with_the_data_or_the_runs_is_given_more_and_once_more_at_a_second_attempt():
    # measured at full size: 3,070 MB to prepare; 1 GB, 16 MB and 13 s a run for the tables
    tiny, paper = planned("default").trained[0], planned("paper").trained[0]
    assert (jobs.preparation_mb(tiny, 1), jobs.preparation_mb(paper, 1)) == (2000, 6000)
    assert jobs.preparation_mb(paper, 2) == 12_000
    for runs in (10, 234):
        assert jobs.tables_mb(runs, 1) > 1.3 * (1000 + 16 * runs)
        assert jobs.tables_minutes(runs, 1) > 2 * 13 * runs / 60
    assert (jobs.tables_mb(234, 2), jobs.tables_minutes(234, 2)) == (2 * 7116, 2 * 147)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"training.images_per_forward": 3}, "multiple of images_per_forward 3"),
        ({"training.processes": 7}, "processes 7"),
        ({"training.strategy": "deepspeed"}, "strategy"),
    ],
)
def test_a_batch_that_cannot_be_shared_out_is_refused(changes, message):
    raw = {**read_study(ROOT / "config" / "paper.yaml", ROOT), "set": changes}
    with pytest.raises(ConfigError, match=message):
        resolve_study(load_study(raw), ROOT)


@pytest.mark.parametrize("config", ["paper", "small"])
def test_a_pretraining_that_nothing_reads_is_refused(config):
    """Else both of its rows would be the same models, the second under a false name."""
    files = [ROOT / f"config/{config}.yaml", ROOT / "config/studies/pretraining.yaml"]
    with pytest.raises(ConfigError, match="svp: none of the models here is pretrained"):
        resolve_study(load_study(read_study(files, ROOT)), ROOT)
