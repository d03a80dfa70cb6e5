"""The stage's source: options checked, annotations of the run's own data handed over."""

from pathlib import Path
from types import SimpleNamespace

import pandas as pd
import pytest

from harness.config import ConfigError
from harness.config.resolve import read_study
from harness.planning.plan import Plan
from harness.superpixels.stage import build_source

ROOT = Path(__file__).resolve().parents[2]


def one_row(tmp_path, **changes):
    raw = {**read_study(ROOT / "config" / "default.yaml", ROOT), "results": str(tmp_path)}
    plan = Plan.from_raw({**raw, "rows": [{"name": "svp", "set": changes}], "reference_row": "svp"}, ROOT)
    return plan, plan.runs["svp.base.auto.s0"]


def test_instances_are_those_of_the_runs_own_data(tmp_path):
    plan, run = one_row(tmp_path, superpixels="instances")
    table = plan.prepared_dir(run) / "annotations.parquet"
    with pytest.raises(ValueError, match=r"annotations\.parquet is missing; run the prepare stage"):
        build_source(plan, run)
    table.parent.mkdir(parents=True)
    row = {"image_id": [7], "ann_id": [1], "height": [6], "width": [8], "rle": ["0"]}
    pd.DataFrame(row).to_parquet(table)
    assert build_source(plan, run).config.annotations == table


def test_another_table_may_be_named(tmp_path):
    other = tmp_path / "other.parquet"
    plan, run = one_row(
        tmp_path, **{"superpixels": "instances", "superpixels.options.annotations": str(other)}
    )
    with pytest.raises(ValueError, match="other.parquet is missing"):
        build_source(plan, run)


def test_the_sam_of_a_source_is_put_on_the_device_of_choice(tmp_path, monkeypatch):
    plan, run = one_row(tmp_path)
    asked = []

    def load(*arguments):
        asked.append(arguments)
        return SimpleNamespace(to=lambda device: f"SAM on {device}")

    monkeypatch.setattr("harness.models.sam.load_sam", load)
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert build_source(plan, run).sam == "SAM on cuda"
    assert asked == [(plan.model_source(run, "sam"), run.models.sam.kind, run.models.sam.sha256)]


def test_options_of_another_source_are_refused_before_anything_runs(tmp_path):
    with pytest.raises(ConfigError, match="superpixels: grid: unknown option 'segments'"):
        one_row(tmp_path, **{"superpixels": "grid", "superpixels.options.segments": 3})


def test_a_wrong_value_of_an_option_is_named(tmp_path):
    plan, run = one_row(tmp_path, **{"superpixels": "grid", "superpixels.options.rows": "many"})
    with pytest.raises(ValueError, match="superpixels: grid: rows: .*integer"):
        build_source(plan, run)
