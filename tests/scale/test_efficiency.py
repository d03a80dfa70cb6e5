"""Rows are timed side by side: one copy of what they leave frozen, and each row its own weights."""

import json
from itertools import count
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.cli import app
from harness.files import write_json
from harness.measuring import clocks, efficiency
from harness.measuring.clocks import count_flops
from harness.measuring.efficiency import _rows, efficiency_stage
from harness.planning.plan import Plan
from harness.reporting.snapshot import provenance
from harness.superpixels.stage import superpixel_stage
from harness.tensors import save_tensors
from harness.training.assembly import RunData, build_model, finished_model, load_stage

ROWS = [
    "mlp",
    {"name": "avg_pool", "budget": 9},
    {"name": "m3", "budget": 36},
    {"name": "fastv", "budget": 36, "config": {"layer": 1}},
    "svp",
]


@pytest.fixture
def trained(study):
    """A study of rows whose trained parts differ from each other in every tensor."""
    made = study(ROWS, {"training.images_per_step": 2})
    made.features()
    superpixel_stage(made.plan, made.plan.run_named("svp"))
    for number, run in enumerate(made.plan.trained, start=1):
        state = build_model(made.plan, run, RunData(made.plan, run).vision_width).trained_state()
        changed = {n: t + 0.01 * number if t.is_floating_point() else t for n, t in state.items()}
        save_tensors(made.plan.weights(run.id), changed)
    return made


def answers(plan: Plan, run, model):
    data = RunData(plan, run)
    image_id = int(data.expressions["image_id"].iloc[0])
    model.eval()
    with torch.no_grad():
        return model(
            data.features([image_id]), [["the red cup", "left star"]], data.sam_embeddings([image_id])
        )[0]


def test_rows_share_what_is_frozen_and_answer_as_if_alone(trained):
    trained = trained.plan
    rows = _rows(trained, trained.trained, torch.device("cpu"))
    learnt = rows[0].model.trained_state().keys()
    assert len({id(row.data.arrays["sam"]) for row in rows}) == 1
    for name, parameter in rows[0].model.named_parameters():
        others = [dict(row.model.named_parameters()).get(name) for row in rows[1:]]
        same = [other is not None and other.data_ptr() == parameter.data_ptr() for other in others]
        assert all(same) if name not in learnt else not any(same), name
    for row in rows:
        alone = build_model(trained, row.run, row.data.vision_width)
        load_stage(alone, trained.weights(row.run.id))
        with row.on(torch.device("cpu")):
            together = answers(trained, row.run, row.model)
        assert torch.equal(together, answers(trained, row.run, alone))
        assert row.weight_bytes == sum(t.nbytes for t in [*alone.parameters(), *alone.buffers()])
    assert not torch.equal(
        answers(trained, rows[0].run, rows[0].model), answers(trained, rows[1].run, rows[1].model)
    )


def fake_clock(monkeypatch, milliseconds):
    """Calls are made, and take what the ``n``-th of them is said to take."""
    made = count()

    def timed(call, device):
        return milliseconds(next(made)) / 1e3, call()

    monkeypatch.setattr(clocks, "timed", timed)


def test_what_is_written(trained, tmp_path, monkeypatch):
    fake_clock(monkeypatch, lambda _: 2.0)
    monkeypatch.setattr(efficiency, "peak_rates", lambda *_: (1e9, 1e8))
    efficiency_stage(trained.plan, tmp_path / "study.json")
    found = json.loads((tmp_path / "study.json").read_text())
    # all do three stages of two milliseconds, two encoders before them, and svp superpixels too
    for row in found["relative"]:
        for end in ("", "_low", "_high"):
            assert row[f"speedup_infer{end}"] == (0.8333 if row["projector"] == "svp" else 1)
            assert row[f"speedup_train{end}"] == 1
    for row in found["parameters"]:
        assert (row["layer_tokens"] is not None) == (row["projector"] == "fastv")
        assert row["step_budgets"] == (4 if row["projector"] == "m3" else 1)  # 144, 36, 9 and 1 of 12 x 12
    times = {(r["projector"], r["stage"], r["case"], r["batch"]): r for r in found["rows"]}
    for name in ("mlp", "avg_pool", "m3", "fastv", "svp"):
        for batch in (1, 8):
            assert times[name, "total", "cached", batch]["median_ms"] == 6
            assert times[name, "total", "cold", batch]["median_ms"] == (12 if name == "svp" else 10)
        assert times[name, "train_step", "train", 2]["median_ms"] == 2
    # 144 patches through two layers of 32 to 32, in multiply-adds times two
    mlp, pooled = (times[name, "project", "cached", 1] for name in ("mlp", "avg_pool"))
    assert mlp["flops"] == 2 * 144 * (32 * 32 + 32 * 32)
    # those at 1e9 a second; nine tokens cost less than reading 2 x (32 x 32 + 32) weights of 4 bytes at 1e8
    assert (mlp["bound_ms"], mlp["roofline_fraction"]) == (0.5898, 0.2949)
    assert (pooled["bound_ms"], pooled["roofline_fraction"]) == (0.0845, 0.0422)


class Told(clocks.Member):
    """Takes, in its n-th call of a batch, what it is told."""

    def __init__(self, name, log, cases):
        self.name, self.log, self.cases, self.found = name, log, cases, clocks.Timed()

    def calls(self, batch, groups):
        return {"work": lambda: self.log.append((self.name, batch, groups))}


def test_all_take_turns_within_a_case(monkeypatch):
    log = []
    cases = {1: ["a", "b", "c"], 8: ["abc"], clocks.TRAIN: ["step"]}
    one, two = Told("one", log, cases), Told("two", log, cases)
    clock = [5, 10, 30, 40, 7, 12, 1, 2, 3, 4, 2, 9, *[9] * 6, *range(100, 104), *range(200, 206)]
    fake_clock(monkeypatch, lambda n: clock[n])
    monkeypatch.setattr(clocks, "count_flops", lambda work: 7.0)
    rounds = {1: 3, 8: 2, clocks.TRAIN: 3}
    clocks.time_in_turns([one, two], rounds, "nothing", torch.device("cpu"))
    # of each case the median of its rounds, of a single case each round
    assert one.found.samples == {
        ("work", 1): [7, 2, 9],
        ("work", 8): [100, 102],
        ("work", clocks.TRAIN): [200, 202, 204],
    }
    assert two.found.samples["work", 1] == [12, 4, 9]
    assert one.found.flops == {("work", 1): [7, 7, 7], ("work", 8): [7]}
    # warmed up before anything is timed, then in turns
    first = [name for name, batch, group in log if (batch, group) == (1, "a")]
    assert first == ["one", "two"] + ["one", "two"] * 3


def test_an_encoder_takes_its_turn_beside_the_rows_and_has_no_training_step(monkeypatch):
    log = []
    encoder = Told("encoder", log, {1: ["a", "b"]})
    row = Told("row", log, {1: ["a", "b"], clocks.TRAIN: ["step"]})
    fake_clock(monkeypatch, lambda n: n)
    monkeypatch.setattr(clocks, "count_flops", lambda work: 7.0)
    clocks.time_in_turns([encoder, row], {1: 2, clocks.TRAIN: 2}, "nothing", torch.device("cpu"))
    assert encoder.found.samples == {("work", 1): [1, 5]}  # the clock's 0 and 2, then 4 and 6
    assert row.found.samples == {("work", 1): [2, 6], ("work", clocks.TRAIN): [8, 9]}
    assert [name for name, _, group in log if group == "a"] == ["encoder", "row"] * 3


def test_a_speed_up_is_the_median_over_photographs(trained):
    rows = _rows(trained.plan, trained.plan.trained[:2], torch.device("cpu"))
    for row, factor in zip(rows, ([4, 4, 4], [1, 2, 8]), strict=True):
        for stage in ("vision", "sam_encode", "project", "prefill", "mask"):
            row.found.samples[stage, 1] = [float(v) for v in factor]
        row.found.samples["train_step", clocks.TRAIN] = [3.0 * v for v in factor]
    told = efficiency._relative(*rows)
    for kind in ("infer", "train"):
        assert [told[f"speedup_{kind}{end}"] for end in ("_low", "", "_high")] == [0.5, 2, 4]
    assert set(efficiency._relative(None, rows[0]).values()) == {None}


def test_photographs_are_spread_over_the_splits(trained):
    run = trained.plan.trained[0]
    data = RunData(trained.plan, run)
    cases = efficiency._cases(data, run, data.arrays.values())
    first = [group for [group] in cases[1]]
    assert len({tuple(g[["dataset", "split", "image_id"]].iloc[0]) for g in first}) == 8 == len(cases[8][0])
    assert len({tuple(g[["dataset", "split"]].iloc[0]) for g in first}) > 2
    assert all(g["image_id"].nunique() == 1 for g in first)


def test_a_training_step_is_timed_on_train_photographs_whose_features_are_stored(trained):
    run = trained.plan.trained[0]
    data = RunData(trained.plan, run)
    train = data.expressions[data.expressions["split"].eq("train")]
    ids = sorted(train["image_id"].unique().tolist())

    def of_a_step():
        [groups] = efficiency._cases(data, run, data.arrays.values())[clocks.TRAIN]
        assert len(groups) == run.training.images_per_step
        assert all(len(g) <= run.training.expressions_per_image for g in groups)
        return [int(i) for g in groups for i in g["image_id"].unique()]

    assert set(of_a_step()) <= set(ids)
    stored = data.arrays["sam"].array._place  # a budget of two photographs
    for image_id in [*stored]:
        if image_id not in ids[1:3]:
            del stored[image_id]
    assert of_a_step() == ids[1:3]


def test_what_is_timed_is_the_model_that_predicts(trained):
    """LoRA is merged for predictions: its products are not to be counted beside those of the weights."""
    plan, run = trained.plan, trained.plan.trained[0]
    row = _rows(plan, [run], torch.device("cpu"))[0]
    data = RunData(plan, run)
    finished = finished_model(plan, run, data.vision_width, "cpu")
    alone = efficiency._Row(run, data, finished, row.cases)
    group = row.cases[1][0]
    with torch.no_grad():
        timed = count_flops(row.calls(1, group)["prefill"])
        row.model.set_stage(2)
        adapted = count_flops(row._answer(group)["prefill"])
        predicts = count_flops(alone._answer(group)["prefill"])
    assert timed == predicts < adapted


def test_a_finished_study_is_timed_on_the_machine_at_hand(trained, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(json.dumps(trained.raw))
    # The study ran elsewhere: neither its code nor its GPU is what is timed here.
    write_json(trained.plan.started_file, {"commit": "theirs", "uncommitted_changes": False})
    write_json(trained.plan.efficiency_file, {"rows": [{"device": "NVIDIA of theirs"}]})
    assert {"theirs", "NVIDIA of theirs"} <= set(map(str, provenance(trained.plan, "").values()))
    command = ["efficiency", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    app([*command, "--json"])
    told = json.loads(capsys.readouterr().out)
    table = pd.read_csv(Path(told["out"]) / "efficiency.csv", dtype={"budget": str})
    assert {"efficiency.json", "efficiency.csv", "provenance.json"} == {
        path.name for path in Path(told["out"]).iterdir()
    }
    assert told["commit"] != "theirs" and "theirs" not in told["device"] and "theirs" not in told["out"]
    assert [row["projector"] for row in told["rows"]] == ["mlp", "avg_pool", "m3", "fastv", "svp"]
    total = table[(table["stage"] == "total") & (table["batch"] == 1)].set_index(["projector", "case"])
    for row in told["rows"]:
        for case in ("cold", "cached"):
            assert row[f"{case}_ms"] == pytest.approx(total["median_ms"][row["projector"], case], rel=1e-4)
        assert (row["speedup_infer"] == 1) == (row["projector"] == "mlp")
    trained.plan.weights(trained.plan.run_named("mlp").id).unlink()
    with pytest.raises(ValueError, match=r"1 of 5 rows are not trained, such as mlp.*; run the study first"):
        app(command)
