"""The learning-rate search: equal cost, held-out images of train, the best of the grid."""

from pathlib import Path

import pandas as pd
import pytest

from harness import tuning
from harness.files import read_json
from harness.held_out import held_out, without_held_out
from harness.plan import Plan
from harness.study import read_study
from harness.triggers import checkpoint_trigger, train_trigger, tune_trigger

ROOT = Path(__file__).resolve().parents[2]
ROWS = ["svp", "mlp", {"name": "avg_pool", "budget": "1/4"}, {"name": "text_blind", "of": "svp"}, "oracle"]


def plan(**changes) -> Plan:
    search = {"factors": [0.5, 1, 4], "steps": 0.1, "held_out_images": 20}
    raw = read_study(ROOT / "config/default.yaml", ROOT)
    raw |= {"rows": ROWS, "effort": "full", "seeds": [3, 4], "tuning": search}
    raw["set"] = {"training.stage1_steps": 50, "training.stage2_steps": 200, "training.learning_rate": 1e-3}
    return Plan.from_raw({**raw, **changes}, ROOT)


def expressions():
    rows = [
        (dataset, split, image, f"{dataset} {image}")
        for dataset in ("one", "two")
        for split, images in (("train", range(60)), ("val", range(100, 110)))
        for image in images
    ]
    return pd.DataFrame(rows, columns=["dataset", "split", "image_id", "sentence"])


def test_held_out_images_are_trains_and_leave_it_in_all_datasets():
    table = expressions()
    judged, left = held_out(table, 20), without_held_out(table, 20)
    assert judged["image_id"].nunique() == 20 and set(judged["split"]) == {"train"}
    assert len(judged) == 40  # both datasets share the images
    assert not set(judged["image_id"]) & set(left["image_id"])
    assert len(left) + len(judged) == len(table)
    shuffled = table.sample(frac=1, random_state=0)
    assert set(held_out(shuffled, 20)["image_id"]) == set(judged["image_id"])
    assert without_held_out(table, 0) is table


def test_a_held_out_part_as_large_as_train_is_refused():
    with pytest.raises(ValueError, match="held_out_images is 60, but train has 60 images"):
        held_out(expressions(), 60)


def test_every_trained_row_is_searched_at_the_same_cost():
    made = plan()
    assert set(made.trials) == {"svp.base.auto", "mlp.base.auto", "avg_pool.base.36"}
    for row, trials in made.trials.items():
        assert list(trials) == [f"{row}.s3-lr{rate}" for rate in ("0.0005", "0.001", "0.004")]
        for trial in trials.values():
            assert (trial.training.stage1_steps, trial.training.stage2_steps) == (5, 20)
            assert trial.held_out_images == 20 and trial.seed == 3
    assert set(made.trainable) - set(made.runs) == {t for row in made.trials.values() for t in row}
    assert not plan(tuning=None).trials


def test_a_trial_sees_nothing_that_is_evaluated_and_a_run_all_of_train():
    made = plan()
    assert all(run.held_out_images == 0 for run in made.runs.values())
    trial = made.trial("mlp.base.auto")
    assert not made.choices(trial)
    assert made.choices(made.runs["mlp.base.auto.s4"]) == [Path("results/default/tuning/mlp.base.auto.json")]
    assert not plan(tuning=None).choices(trial)


def searched(made, monkeypatch, tmp_path, scores):
    monkeypatch.setattr(Plan, "study_dir", tmp_path)
    monkeypatch.setattr(tuning, "held_out_giou", lambda _, trial: (scores[trial.training.learning_rate], 7))
    tuning.tune_stage(made, "mlp.base.auto")
    return read_json(made.choice_file("mlp.base.auto"))


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({0.0005: 0.1, 0.001: 0.3, 0.004: 0.2}, 0.001),
        ({0.0005: 0.1, 0.001: 0.3, 0.004: 0.4}, 0.004),
        ({0.0005: 0.2, 0.001: 0.2, 0.004: 0.2}, 0.0005),
    ],
)
def test_the_best_rate_is_chosen_and_trained_with(monkeypatch, tmp_path, scores, best):
    made = plan()
    choice = searched(made, monkeypatch, tmp_path, scores)
    assert choice["learning_rate"] == best
    assert dict(zip(choice["learning_rates"], choice["giou"], strict=True)) == scores
    for seed in (3, 4):
        run = made.runs[f"mlp.base.auto.s{seed}"]
        tuned = made.tuned(run)
        assert tuned.training.learning_rate == best == made.learning_rate(run)
        assert tuned.training.stage2_steps == 200
    trial = made.trial("mlp.base.auto")
    assert made.tuned(trial) is trial


def test_a_checkpoint_of_another_rate_is_never_resumed(monkeypatch, tmp_path):
    made = plan()
    run, marks = made.runs["mlp.base.auto.s3"], set()
    for best in (0.0005, 0.004):
        searched(made, monkeypatch, tmp_path, {r: float(r == best) for r in (0.0005, 0.001, 0.004)})
        marks.add(checkpoint_trigger(made, made.tuned(run)))
    assert len(marks) == 2


def test_what_the_search_hangs_on():
    base, other = plan(), plan(tuning={"factors": [0.5, 1, 8], "steps": 0.1, "held_out_images": 20})
    assert tune_trigger(base, "mlp.base.auto") != tune_trigger(other, "mlp.base.auto")
    trial = base.trial("mlp.base.auto")
    fewer = trial.model_copy(update={"held_out_images": 10})
    assert train_trigger(base, trial, 1) != train_trigger(base, fewer, 1)
    run = base.runs["mlp.base.auto.s3"]
    assert train_trigger(base, run, 1) == train_trigger(other, run, 1)
