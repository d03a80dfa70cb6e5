"""The learning-rate search: equal cost, held-out images of train, the best of the grid."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from saved_language import save_llama
from saved_vision import save_vision
from torch.nn import functional as F

from harness.config.resolve import read_study
from harness.files import read_json
from harness.models.sam import TinySamSize, build_tiny_sam, save_tiny_sam
from harness.planning.plan import Plan
from harness.planning.triggers import checkpoint_trigger, train_trigger, tune_trigger
from harness.running.stages import run_stage
from harness.seeds import forked_rng
from harness.training import tuning
from harness.training.assembly import RunData, finished_model
from harness.training.diverged import mark_diverged
from harness.training.held_out import held_out, without_held_out
from harness.training.loop import Sampler

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
    # drawn: neither the first images nor the last
    assert set(judged["image_id"]) not in ({*range(20)}, {*range(40, 60)})
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


def test_a_trial_that_diverged_counts_as_nothing_and_is_never_chosen(monkeypatch, tmp_path):
    made = plan()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Plan, "study_dir", tmp_path)
    trials = sorted(made.trials["mlp.base.auto"].values(), key=lambda one: one.training.learning_rate)
    mark_diverged(made, trials[0], 2)
    choice = searched(made, monkeypatch, tmp_path, {0.001: 0.0, 0.004: 0.0})  # it has no weights
    assert choice["learning_rate"] == 0.001 and choice["n_expressions"] == 7
    assert choice["giou"] == [None, 0.0, 0.0]
    for trial in trials[1:]:
        mark_diverged(made, trial, 2)
    with pytest.raises(ValueError, match=r"^mlp\.base\.auto: every trial .* take smaller tuning\.factors$"):
        tuning.tune_stage(made, "mlp.base.auto")


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


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    """A study of eight train images whose two trials of one row are trained, and what they were shown."""
    folder = tmp_path_factory.mktemp("searched")
    for part in ("vision", "language", "sam"):
        (folder / part).mkdir()
    save_vision("dinov2", folder / "vision")
    save_llama(folder / "language")
    size = TinySamSize(width=32, depth=1, heads=2, prompt_width=32)
    with forked_rng("sam"):
        save_tiny_sam(build_tiny_sam(size), size, folder / "sam")
    images = {f"data.{split}_images": 2 for split in ("val", "testA", "testB", "test")}
    models = {f"models.{part}.source": str(folder / part) for part in ("vision", "language", "sam")}
    models |= {"models.vision.image_size": 42, "models.vision.patch_size": 14, "models.vision.levels": []}
    models |= {"models.start": None, "data.train_images": 8, "data.pool_images": 1}
    training = {"stage1_steps": 6, "stage2_steps": 6, "images_per_step": 4, "learning_rate": 0.02}
    training |= {"caption_weight": 0}  # this tokenizer has one token for all places
    training = {f"training.{key}": value for key, value in training.items()}
    raw = read_study(ROOT / "config/default.yaml", ROOT)
    raw |= {"rows": ["mlp"], "effort": "full", "superpixels": "slic", "results": "results"}
    raw |= {"tuning": {"factors": [0.001, 1], "steps": 0.5, "held_out_images": 3}}
    made = Plan.from_raw({**raw, "set": images | models | training}, ROOT)
    shown: set[int] = set()
    draw = Sampler.rows

    def recorded(self, stage, step):
        groups = draw(self, stage, step)
        shown.update(int(group["image_id"].iloc[0]) for group in groups)
        return groups

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(Sampler, "rows", recorded)
        made.save(made.config_file)
        for stage, key in made.shared_stages:
            run_stage(stage, made.config_file, key=key)
        for trial in made.trials["mlp.base.auto"].values():
            for stage in (1, 2):
                run_stage("train", made.config_file, run=trial.id, stage=stage)
        yield made, shown


def ious(made, trial, rows):
    """IoU of each expression: one image at a time, low-resolution logits to SAM's square, then to pixels."""
    data = RunData(made, trial)
    model = finished_model(made, trial, data.vision_width, "cpu")
    found = []
    for row in rows.itertuples():
        with torch.no_grad():
            seen = data.features([row.image_id]), [[row.sentence]], data.sam_embeddings([row.image_id])
            logits = model(*seen)[0][None].float()
        truth = data.mask(row.dataset, row.ann_id).astype(bool)
        side, longest = model.sam.image_encoder.img_size, max(truth.shape)
        frame = [int(length * side / longest + 0.5) for length in truth.shape]
        square = F.interpolate(logits, (side, side), mode="bilinear", align_corners=False)
        square = square[..., : frame[0], : frame[1]]
        mask = F.interpolate(square, truth.shape, mode="bilinear", align_corners=False)[0, 0].numpy() > 0
        found.append((mask & truth).sum() / max((mask | truth).sum(), 1))
    return found


def test_the_measure_is_the_mean_iou_of_held_out_images_and_the_better_trial_wins(measured, monkeypatch):
    made, shown = measured
    table = pd.read_parquet(made.prepared_dir(made.trial("mlp.base.auto")) / "expressions.parquet")
    judged: set[int] = set()
    read = RunData.features

    def recorded(self, image_ids, *device):
        judged.update(image_ids)
        return read(self, image_ids, *device)

    monkeypatch.setattr(RunData, "features", recorded)
    tuning.tune_stage(made, "mlp.base.auto")
    monkeypatch.undo()
    train = set(table.loc[table["split"] == "train", "image_id"])
    assert len(judged) == 3 and judged < train and not judged & shown
    assert not judged & set(table.loc[table["split"] != "train", "image_id"])

    rows = table[table["image_id"].isin(judged)]
    trials = sorted(made.trials["mlp.base.auto"].values(), key=lambda one: one.training.learning_rate)
    expected = [float(np.mean(ious(made, trial, rows))) for trial in trials]
    choice = read_json(made.choice_file("mlp.base.auto"))
    assert choice["giou"] == pytest.approx(expected, abs=1e-3) and choice["n_expressions"] == len(rows)
    assert abs(expected[0] - expected[1]) > 0.005
    assert choice["learning_rate"] == [0.02 * 0.001, 0.02][int(expected[1] > expected[0])]
