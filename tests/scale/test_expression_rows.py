"""A row that reads the expression, from training to its timings, beside one that does not."""

from pathlib import Path

import expression_pool
import pandas as pd
import pytest
from expression_pool import ExpressionPool

from harness.data.tables import load_tables
from harness.files import read_json
from harness.measuring.efficiency import efficiency_stage
from harness.prediction import predict_stage
from harness.reporting.notes import table_notes
from harness.training.loop import train_stage

FILE = str(Path(expression_pool.__file__))


@pytest.fixture
def study_of_both(study, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = ["mlp", {"name": FILE}, {"name": "text_blind", "of": ExpressionPool.name}]
    made = study(rows, {"training.stage1_steps": 2, "training.stage2_steps": 2})
    made.plan.study = made.plan.study.model_copy(update={"study": tmp_path.name})
    made.features()
    return made


def test_it_is_trained_asked_controlled_and_timed(study_of_both, tmp_path):
    made = study_of_both
    for run in made.plan.trained:
        train_stage(made.plan, run, 1)
        train_stage(made.plan, run, 2)
    for run in made.plan.runs.values():
        predict_stage(made.plan, run)
    told = {
        run.projector: pd.read_parquet(made.plan.prediction_file(run.id)).set_index(["dataset", "sent_id"])
        for run in made.plan.runs.values()
    }
    tables = load_tables(made.plan.prepared_dir(made.run))
    said = tables.expressions.set_index(["dataset", "sent_id"])["sentence"]
    assert set(told["mlp"]["visual_tokens"]) == {144}
    own = told[ExpressionPool.name]["visual_tokens"]
    assert own.nunique() > 2
    words = said.loc[own.index].str.split().str.len()
    assert (own >= words + 2).all()  # a word has one token at least
    # blind to its own words, it reads others': of the same images, other counts
    assert (told["text_blind"]["visual_tokens"] != own).any()

    efficiency_stage(made.plan, tmp_path / "study.json")
    rows = pd.DataFrame(read_json(tmp_path / "study.json")["rows"])
    assert (rows[rows["projector"].eq(ExpressionPool.name)]["median_ms"] > 0).all()
    notes = [note for note in table_notes(made.plan) if "reads the expression" in note]
    assert notes and all(note.startswith(ExpressionPool.name) for note in notes)
