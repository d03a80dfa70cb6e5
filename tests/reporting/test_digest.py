"""The page of snapshots says what the tables say."""

import json
import re

import pytest
from made_up_study import MADE_BY

from harness.reporting.context import ReportContext, canonical_context, read_csv, write_text
from harness.reporting.digest import _p_text, digest, write_digest
from harness.reporting.tables import tables_stage


def lines(text):
    return [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")][1:]


@pytest.mark.parametrize("name", ["default", "a_study"])
def test_rows_and_differences_are_those_of_the_tables(reference, name):
    overall = read_csv(reference / name / "tables" / "overall.csv")
    text = digest(reference / name)
    context = json.loads((reference / name / "tables" / "context.json").read_text())
    base = overall[overall["projector"] == context["reference"].removesuffix(" @36")].iloc[0]
    found = lines(text)
    assert len(found) == len(overall)
    for (label, tokens, giou, gap, p), row in zip(found, overall.itertuples(), strict=True):
        assert label.startswith(row.projector)
        assert float(tokens) == pytest.approx(row.tokens_mean, abs=0.06)
        value, low, high = map(float, re.findall(r"[-+]?[\d.]+", giou))
        assert value == pytest.approx(100 * row.giou, abs=0.06) and low <= value <= high
        if row.projector == base["projector"] and row.budget == base["budget"]:
            assert (gap, p) == ("–", "–")
            continue
        gap, low, high = map(float, re.findall(r"[-+]?[\d.]+", gap))
        assert gap == pytest.approx(100 * (row.giou - base["giou"]), abs=0.06) and low <= gap <= high
        assert 0 < float(p.removeprefix("≤ ")) <= 1


@pytest.mark.parametrize(
    ("p", "resamples", "said"),
    [
        (0.001, 2000, "≤ 0.001"),
        (2 / 2001, 2000, "≤ 0.001"),
        (0.001499, 2000, "0.001"),
        (2 / 201, 200, "≤ 0.010"),
    ],
)
def test_a_p_value_at_the_least_that_the_bootstrap_knows_is_a_bound(p, resamples, said):
    assert _p_text(p, resamples) == said


def test_a_reference_with_a_budget_is_the_row_of_that_budget(made_up, reference):
    """Speed-ups are relative to the first row of that name in the config, and so are the differences."""
    for name, label in (("pool.base.9", "pool @9"), ("pool", "pool @36"), ("segments", "segments")):
        study = {**made_up["config"]["study"], "reference_row": name}
        context = ReportContext.from_study({**made_up["config"], "study": study})
        assert context.reference == label
        write_text(reference / "default" / "tables" / "context.json", canonical_context(context))
        text = digest(reference / "default")
        assert f"| minus {label} |" in text
        assert [line for line in lines(text) if line[-2:] == ["–", "–"]][0][0] == label


def test_differences_to_a_budget_are_told_where_every_second_row_has_one(made_up, tmp_path):
    """A column of budgets alone must not be read as numbers."""
    kept = [
        score
        for score, row in zip(made_up["scores"], made_up["config"]["runs"], strict=True)
        if row["projector"] in ("dense", "pool")
    ]
    context = ReportContext.from_study(made_up["config"], resamples=50)
    tables_stage(kept, made_up["efficiency"], made_up["prepared"], tmp_path / "x" / "tables", context)
    (tmp_path / "x" / "provenance.json").write_text(json.dumps(MADE_BY))
    assert [line[0] for line in lines(digest(tmp_path / "x")) if "–" in line] == ["dense"]


def test_the_page_begins_with_the_default_and_tells_of_changes(reference):
    text = write_digest(reference).read_text()
    assert re.findall(r"^## (\w+):", text, flags=re.M) == ["default", "a_study"]
    assert "at commit 0123456, on a machine" in text
    (reference / "default" / "provenance.json").write_text(
        json.dumps({**MADE_BY, "uncommitted_changes": True})
    )
    assert "with uncommitted changes" in write_digest(reference).read_text()
    trained = {**MADE_BY, "trained_at": [MADE_BY["commit"], "f" * 40 + " and changes"], "minutes": 12.3}
    (reference / "default" / "provenance.json").write_text(json.dumps(trained))
    text = write_digest(reference).read_text()
    assert "in 12 minutes (without what earlier studies had left)" in text
    assert "; rows trained at 0123456, fffffff and changes." in text


def test_a_folder_of_studies_is_no_folder_of_snapshots(reference):
    """And nothing is written over its README."""
    (reference / "a_study" / "provenance.json").unlink()
    (reference / "README.md").write_text("by hand")
    with pytest.raises(ValueError, match="no folder of snapshots: a_study has no provenance.json"):
        write_digest(reference)
    assert (reference / "README.md").read_text() == "by hand"
