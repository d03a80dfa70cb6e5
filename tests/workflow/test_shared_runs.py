"""What was trained once is taken; what differs in a value, an input or the code is trained."""

import json
from pathlib import Path

import pytest
import torch

from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.planning.triggers import checkpoint_dir
from harness.running import processes, stages
from harness.tensors import load_tensors, save_tensors
from harness.training import loop, trained
from harness.training.diverged import is_diverged

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "config/studies/smoke.yaml"


@pytest.fixture
def trainings(monkeypatch):
    """Trainings that were really made; each writes other weights."""
    made = []

    def train(plan, run, stage):
        made.append((plan.study.study, run.id, stage))
        save_tensors(plan.weights(run.id, stage), {"weight": torch.tensor([float(len(made))])})
        log = plan.log_file(run.id)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("a") as stream:
            stream.write(json.dumps({"stage": stage, "made": len(made)}) + "\n")

    monkeypatch.setattr(loop, "train_stage", train)
    return made


def study(folder, name="one", **changes):
    """A study whose inputs' manifests are there."""
    plan = Plan.from_raw({**read_study(SMOKE, ROOT), "study": name, "results": str(folder), **changes}, ROOT)
    for path in {path for run in plan.trained for path in plan.run_inputs(run) if not path.exists()}:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    plan.save(plan.config_file)
    return plan


def train(plan, run, stages_=(1, 2)):
    for stage in stages_:
        stages.run_stage("train", plan.config_file, run=run, stage=stage)
    return load_tensors(plan.weights(run, stages_[-1]), "")["weight"].item()


@pytest.fixture(autouse=True)
def somewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # locks lie under the working folder
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        monkeypatch.setenv(name, "1")  # a stage sets them


def first_run(plan):
    return plan.trained[0].id


def test_another_study_takes_the_run_with_its_log(tmp_path, trainings):
    one, two = study(tmp_path), study(tmp_path, "two")
    run = first_run(one)
    assert train(one, run) == 2 and train(two, run) == 2
    assert trainings == [("one", run, 1), ("one", run, 2)]
    assert two.log_file(run).read_bytes() == one.log_file(run).read_bytes()
    # Snakemake goes by time stamps: what is taken is new
    assert two.weights(run).stat().st_mtime_ns >= one.weights(run).stat().st_mtime_ns
    assert not two.weights(run).samefile(one.weights(run))


@pytest.mark.parametrize("changes", [{"seeds": [1]}, {"set": {"training.learning_rate": 1e-5}}])
def test_another_value_is_another_run(tmp_path, trainings, changes):
    merged = {**changes, "set": read_study(SMOKE, ROOT).get("set", {}) | changes.get("set", {})}
    one, two = study(tmp_path), study(tmp_path, "two", **merged)
    train(one, first_run(one)), train(two, first_run(two))
    assert len(trainings) == 4


def test_a_longer_second_stage_shares_the_first(tmp_path, trainings):
    longer = read_study(SMOKE, ROOT).get("set", {}) | {"training.stage2_steps": 99}
    one, two = study(tmp_path), study(tmp_path, "two", set=longer)
    run = first_run(one)
    train(one, run), train(two, run)
    assert trainings == [("one", run, 1), ("one", run, 2), ("two", run, 2)]


def test_inputs_that_say_something_else_are_not_the_same_inputs(tmp_path, trainings):
    one, two = study(tmp_path), study(tmp_path, "two")
    run = first_run(one)
    train(one, run)
    (one.prepared_dir(one.runs[run]) / "summary.json").write_text("{}")
    train(two, run)
    assert len(trainings) == 4


def test_weights_that_were_replaced_where_they_lie_are_others(tmp_path, trainings):
    weights, language = tmp_path / "sam.pth", tmp_path / "llm"
    language.mkdir()
    for file in (weights, language / "model.safetensors", language / "config.json"):
        file.write_bytes(b"first")
    sources = {
        "models.sam.source": str(weights),
        "models.language.source": str(language),
        "models.start": None,
    }
    changes = {"set": read_study(SMOKE, ROOT).get("set", {}) | sources, "rows": ["mlp"]}
    one, run = study(tmp_path, **changes), "mlp.base.auto.s0"
    train(one, run)
    train(study(tmp_path, "two", **changes), run)
    assert len(trainings) == 2
    for number, file in enumerate((weights, language / "model.safetensors"), start=2):
        file.write_bytes(b"another conversion")
        train(study(tmp_path, f"with_{number}", **changes), run)
        assert len(trainings) == 2 * number
    assert {weights, language / "model.safetensors"} <= set(one.run_inputs(one.runs[run]))  # Snakemake's too


def test_code_that_changed_trains_again(tmp_path, trainings, monkeypatch):
    one, two = study(tmp_path), study(tmp_path, "two")
    run = first_run(one)
    train(one, run)
    monkeypatch.setattr("harness.planning.triggers.projector_code", lambda run: "another")
    train(two, run)
    assert len(trainings) == 4


def test_checkpoints_go_when_a_run_is_finished_and_no_sooner(tmp_path, trainings):
    """Those of its earlier code too; those of another run whose name begins alike stay."""
    one, two = study(tmp_path), study(tmp_path, "two")
    run = first_run(one)

    def kept(plan):
        return {path.name for path in (plan.study_dir / "checkpoints").glob("*")}

    for plan in (one, two):
        for name in (f"{run}-aaaa", checkpoint_dir(plan, plan.runs[run]).name, f"{run}-lr0.1-bbbb"):
            (plan.study_dir / "checkpoints" / name).mkdir(parents=True)
        before = kept(plan)
        train(plan, run, (1,))  # trained in the first study, taken in the second
        assert kept(plan) == before
        train(plan, run, (2,))
        assert kept(plan) == {f"{run}-lr0.1-bbbb"}
    assert len(trainings) == 2


def test_share_runs_off_neither_takes_nor_keeps(tmp_path, trainings):
    one, two = study(tmp_path, share_runs=False), study(tmp_path, "two")
    three = study(tmp_path, "three", share_runs=False)
    for plan in (one, two, three):
        train(plan, first_run(one))
    assert len(trainings) == 6


def test_rows_that_differ_in_name_alone_are_trained_once(tmp_path, trainings):
    rows = ["mlp", {"name": "mlp", "variant": "again"}, {"name": "avg_pool", "budget": 9}]
    plan = study(tmp_path, rows=rows)
    first, again, other = (run.id for run in plan.trained)
    assert [train(plan, run) for run in (first, again, other)] == [2, 2, 4]
    assert {run for _, run, _ in trainings} == {first, other}
    assert plan.log_file(again).read_bytes() == plan.log_file(first).read_bytes()


def waited_for(plan, run, stage):
    return [path.parent.name for path in trained.twin_weights(plan, plan.runs[run], stage)]


def test_a_row_waits_for_the_first_that_it_equals_in_a_stage(tmp_path):
    def mlp(variant, **values):
        return {"name": "mlp", "variant": variant, **values}

    longer, faster = {"training.stage2_steps": 99}, {"training.learning_rate": 1e-5}
    rows = ["mlp", mlp("again"), mlp("once_more"), mlp("longer", set=longer), mlp("faster", set=faster)]
    plan = study(tmp_path, rows=rows, seeds=[0, 1])
    first = "mlp.base.auto.s0"
    assert [waited_for(plan, f"mlp.{name}.auto.s0", 1) for name in ("again", "once_more")] == [[first]] * 2
    assert waited_for(plan, "mlp.again.auto.s1", 2) == ["mlp.base.auto.s1"]
    assert waited_for(plan, "mlp.longer.auto.s0", 1) == [first]
    assert waited_for(plan, "mlp.longer.auto.s0", 2) == []
    assert waited_for(plan, "mlp.faster.auto.s0", 1) == []
    assert waited_for(plan, first, 1) == waited_for(plan, first, 2) == []
    alone = study(tmp_path, rows=rows, share_runs=False)
    assert waited_for(alone, "mlp.again.auto.s0", 1) == []


def test_a_kept_file_cut_in_half_is_refused_by_name(tmp_path, trainings):
    one, two = study(tmp_path), study(tmp_path, "two")
    run = first_run(one)
    train(one, run, (1,))
    kept = trained.trained_dir(one, one.runs[run], 1) / "weights.safetensors"
    whole = kept.read_bytes()
    kept.unlink()
    kept.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=f"delete .*{kept.parent.name} to train it again"):
        train(two, run, (1,))
    assert load_tensors(one.weights(run, 1), "")["weight"].item() == 1  # the first study's is whole


@pytest.fixture
def diverging(monkeypatch, trainings):
    """Has training diverge at a stage, in the processes that share it too, which run in this one here."""

    def at(which):
        def train_or_diverge(plan, run, stage, train=loop.train_stage):
            if stage == which:
                raise FloatingPointError(f"{run.id}: the loss is nan at stage {stage}, step 3")
            train(plan, run, stage)

        monkeypatch.setattr(loop, "train_stage", train_or_diverge)
        monkeypatch.setattr(processes, "train_stage", train_or_diverge)
        monkeypatch.setattr(
            processes, "launch", lambda config, run, job, *_, **__: processes._main(str(config), run, job)
        )

    return at


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("which", [1, 2])
def test_a_trial_that_diverges_is_a_finding_that_no_study_takes(tmp_path, diverging, capsys, workers, which):
    shared_out = {"training.processes": workers, "training.images_per_forward": 1}
    changes = {"set": read_study(SMOKE, ROOT).get("set", {}) | shared_out}
    plan = study(tmp_path, effort="full", tuning={"factors": [1, 3]}, **changes)
    trial = next(iter(plan.trials[plan.trained[0].row].values()))
    assert trial.training.workers == workers
    diverging(which)
    for stage in (1, 2):
        stages.run_stage("train", plan.config_file, run=trial.id, stage=stage)
        assert is_diverged(plan.weights(trial.id, stage)) == (stage >= which)
        assert trained.trained_dir(plan, trial, stage).exists() == (stage < which)
    told = f"{trial.id}: the loss is nan at stage {which}, step 3; the search goes on without this trial\n"
    assert capsys.readouterr().err == told


def test_of_several_processes_one_says_that_a_trial_diverged(tmp_path, diverging, monkeypatch, capsys):
    plan = study(tmp_path, effort="full", tuning={"factors": [1, 3]})
    trial = next(iter(plan.trials[plan.trained[0].row]))
    diverging(1)
    monkeypatch.setenv("RANK", "1")
    processes._main(str(plan.config_file), trial, "stage1")
    assert not plan.weights(trial, 1).exists() and not capsys.readouterr().err


def test_a_run_that_diverges_is_a_fault(tmp_path, diverging):
    plan = study(tmp_path)
    diverging(1)
    with pytest.raises(FloatingPointError, match="the loss is nan"):
        train(plan, first_run(plan), (1,))
    assert not plan.weights(first_run(plan), 1).exists()
