"""Published numbers: in form, spot-checked against their sources, and never among ours."""

from pathlib import Path

import pandas as pd
import pytest

from harness.reporting.published import PUBLISHED_COLUMNS, published_markdown, read_published

FOLDER = Path(__file__).parents[2] / "results" / "published"


def test_files_keep_their_form():
    table = read_published(FOLDER)
    assert tuple(table.columns) == PUBLISHED_COLUMNS
    assert set(table["dataset"]) == {"refcoco", "refcoco+", "refcocog"}
    assert not table.duplicated(["method", "dataset", "split", "metric", "value", "note"]).any()
    known = table["value"].notna()
    assert set(table.loc[known, "how_known"]) == {"V", "S"} and (table.loc[known, "source"] != "").all()
    assert set(table.loc[~known, "method"]) == {"SVP"}  # nobody has read them: no number is invented
    assert (table.loc[~known, "note"] != "").all()


@pytest.mark.parametrize(
    ("method", "dataset", "split", "percent"),
    [
        ("GLaMM (ft)", "refcoco", "testA", 83.2),
        ("GLaMM (ft)", "refcoco+", "testB", 64.6),
        ("LISA-7B (ft)", "refcocog", "test", 70.6),
        ("PixelLM-7B", "refcoco", "testB", 68.2),
        ("PSALM", "refcoco+", "val", 72.9),
    ],
)
def test_spot_checks(method, dataset, split, percent):
    table = read_published(FOLDER)
    where = table["method"].eq(method) & table["dataset"].eq(dataset) & table["split"].eq(split)
    row = table[where & table["metric"].eq("ciou")]
    assert row["value"].item() == pytest.approx(percent / 100)


def test_only_the_splits_at_hand_are_printed():
    main = pd.DataFrame({"dataset": ["refcoco", "refcocog"], "split": ["testB", "test"]})
    text = published_markdown(FOLDER, main)
    assert "| GLaMM (ft) | 76.9 | 74.9 |" in text and "| LISA-7B | 71.1 | 68.4–68.5 |" in text
    assert "SVP" not in text and "SAM4MLLM" not in text
    assert published_markdown(FOLDER, pd.DataFrame({"dataset": ["synthref"], "split": ["val"]})) == ""


def test_percent_is_refused(tmp_path):
    line = ",".join(PUBLISHED_COLUMNS) + "\nX,refcoco,val,ciou,79.5,s,V,\n"
    (tmp_path / "bad_scores.csv").write_text(line)
    with pytest.raises(ValueError, match="fractions 0–1"):
        read_published(tmp_path)
