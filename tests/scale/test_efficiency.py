"""Rows are timed side by side: one copy of what they leave frozen, and each row its own weights."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch

from harness.assembly import RunData, build_model, load_stage
from harness.cli import app
from harness.efficiency import _rows, efficiency_stage
from harness.plan import Plan
from harness.tensors import save_tensors

ROWS = [
    "mlp",
    {"name": "avg_pool", "budget": 9},
    {"name": "m3", "budget": 36},
    {"name": "fastv", "budget": 36, "config": {"layer": 1}},
]


@pytest.fixture
def trained(study):
    """A study of rows whose trained parts differ from each other in every tensor."""
    made = study(ROWS, {"training.images_per_step": 2})
    made.features()
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


def test_what_is_written(trained, tmp_path):
    efficiency_stage(trained.plan, tmp_path / "study.json")
    found = json.loads((tmp_path / "study.json").read_text())
    speed = {row["projector"]: row for row in found["relative"]}
    assert speed["mlp"]["speedup_infer"] == speed["mlp"]["speedup_train"] == 1
    assert all(row["speedup_infer"] > 0 for row in speed.values())
    for row in found["parameters"]:
        assert (row["layer_tokens"] is not None) == (row["projector"] == "fastv")
        assert row["step_budgets"] == (4 if row["projector"] == "m3" else 1)  # 144, 36, 9 and 1 of 12 x 12
    times = {(r["projector"], r["stage"], r["case"], r["batch"]): r for r in found["rows"]}
    for name in speed:
        stages = {s: times[name, s, "cached", 1]["median_ms"] for s in ("project", "prefill", "mask")}
        encoders = [times[name, s, "cold", 1]["median_ms"] for s in ("vision", "sam_encode")]
        assert times[name, "total", "cached", 1]["median_ms"] == pytest.approx(sum(stages.values()), abs=1e-3)
        cold = sum(stages.values()) + sum(encoders)
        assert times[name, "total", "cold", 1]["median_ms"] == pytest.approx(cold, abs=1e-3)
        assert speed[name]["speedup_infer"] == pytest.approx(
            times["mlp", "total", "cold", 1]["median_ms"] / times[name, "total", "cold", 1]["median_ms"],
            abs=1e-3,
        )
    # 144 patches through two layers of 32 to 32, in multiply-adds times two
    assert times["mlp", "project", "cached", 1]["flops"] == 2 * 144 * (32 * 32 + 32 * 32)


def test_a_finished_study_is_timed_on_the_machine_at_hand(trained, tmp_path, capsys):
    (tmp_path / "study.yaml").write_text(json.dumps(trained.raw))
    command = ["efficiency", str(tmp_path / "study.yaml"), "--out", str(tmp_path / "out")]
    app([*command, "--json"])
    told = json.loads(capsys.readouterr().out)
    table = pd.read_csv(Path(told["out"]) / "efficiency.csv", dtype={"budget": str})
    assert {"efficiency.json", "efficiency.csv", "provenance.json"} == {
        path.name for path in Path(told["out"]).iterdir()
    }
    assert [row["projector"] for row in told["rows"]] == ["mlp", "avg_pool", "m3", "fastv"]
    total = table[(table["stage"] == "total") & (table["batch"] == 1)].set_index(["projector", "case"])
    for row in told["rows"]:
        for case in ("cold", "cached"):
            assert row[f"{case}_ms"] == pytest.approx(total["median_ms"][row["projector"], case], rel=1e-4)
        assert (row["speedup_infer"] == 1) == (row["projector"] == "mlp")
    trained.plan.weights(trained.plan.run_named("mlp").id).unlink()
    with pytest.raises(ValueError, match=r"1 of 4 rows are not trained, such as mlp.*; run the study first"):
        app(command)
