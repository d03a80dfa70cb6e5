"""A published value is met under its own protocol or not at all."""

from pathlib import Path

import pandas as pd
import pytest

from harness.reporting.published import PUBLISHED_COLUMNS, read_published
from harness.scoring.protocols import PROTOCOL_COLUMNS
from harness.scoring.verify import nearest_rows, published_protocols, verify_counts, verify_scores

PUBLISHED = Path(__file__).parents[2] / "results" / "published"


@pytest.fixture
def folders(tmp_path):
    ours = [
        ("full", 0.70, 0.60), ("glamm-3sent", 0.72, 0.62), ("lisa-summed-polygons", 0.69, 0.59),
    ]  # fmt: skip
    rows = [
        dict(
            zip(
                PROTOCOL_COLUMNS,
                ("mlp", "base", "auto", "refcoco", "val", p, g, None, c, None, 9, 1, 1),
                strict=True,
            )
        )
        for p, g, c in ours
    ]
    pd.DataFrame(rows).to_csv(tmp_path / "protocols.csv", index=False)
    published = tmp_path / "published"
    published.mkdir()
    lines = [
        ("A", "refcoco", "val", "ciou", 0.625, "s", "V", ""),
        ("B", "refcoco", "val", "giou", 0.70, "s", "S", ""),
        ("C", "refcoco", "val", "ciou", 0.60, "s", "V", ""),
        ("D", "refcoco", "testA", "ciou", 0.60, "s", "V", ""),
        ("E", "refcoco", "val", "ciou", None, "s", "", "unread"),
    ]
    pd.DataFrame(lines, columns=list(PUBLISHED_COLUMNS)).to_csv(published / "x_scores.csv", index=False)
    (published / "protocols.csv").write_text(
        "method,protocol,source\nA,glamm-3sent,s\nB,lisa-summed-polygons,s\nD,full,s\n"
    )
    return tmp_path, published


def test_values_are_held_against_ours_under_their_own_protocol(folders):
    tables, published = folders
    found = {row["method"]: row for row in verify_scores(tables, published, tolerance=0.01)}
    assert set(found) == {"A", "B", "C"}  # D has no split here, nobody has read E
    assert found["A"]["met"] and found["A"]["protocol"] == "glamm-3sent" and found["A"]["ours"] == 0.62
    assert found["B"]["met"] and found["B"]["ours"] == 0.69
    # Right to the digit, but nobody knows under which protocol: nothing is claimed.
    assert found["C"]["met"] is None and found["C"]["published_protocol"] == "unknown"
    strict = {row["method"]: row["met"] for row in verify_scores(tables, published, tolerance=0.001)}
    assert strict == {"A": False, "B": False, "C": None}


def test_a_control_meets_nothing_and_of_each_value_the_nearest_row_is_told(folders):
    tables, published = folders
    ours = pd.read_csv(tables / "protocols.csv")
    others = [ours.assign(projector=name, ciou=ours["ciou"] + more) for name, more in
              (("random_keep", 0.005), ("svp", -0.1))]  # fmt: skip
    pd.concat([ours, *others]).to_csv(tables / "protocols.csv", index=False)
    rows = verify_scores(tables, published, tolerance=0.001, projectors=["mlp", "svp"])
    assert {row["projector"] for row in rows} == {"mlp", "svp"}
    near = {row["method"]: (row["projector"], row["met"]) for row in nearest_rows(rows)}
    assert near == {"A": ("mlp", False), "B": ("mlp", False), "C": ("mlp", None)}
    near = {row["method"]: row for row in nearest_rows(verify_scores(tables, published, tolerance=0.001))}
    assert near["A"]["projector"] == "random_keep" and near["A"]["met"]


def test_a_protocol_that_was_not_run_claims_nothing(folders):
    tables, published = folders
    (published / "protocols.csv").write_text("method,protocol,source\nA,sa2va-skipped-failures.generate,s\n")
    found = {row["method"]: row for row in verify_scores(tables, published, tolerance=1.0)}
    assert found["A"]["met"] is None and found["A"]["protocol"] == "full"


def test_methods_can_be_named_and_misspelt(folders):
    tables, published = folders
    assert {r["method"] for r in verify_scores(tables, published, tolerance=1, methods=("B",))} == {"B"}
    with pytest.raises(ValueError, match="no published value of Z; there are those of A, B, C, D"):
        verify_scores(tables, published, tolerance=1, methods=("Z",))
    with pytest.raises(ValueError, match="name the folder of a finished study"):
        verify_scores(tables / "nowhere", published, tolerance=1)


def test_split_sizes_are_held_against_the_known_ones():
    summary = {"datasets": {"refcoco": {"val": {"refs": 3811, "images": 1500, "expressions": 10833}}}}
    found = verify_counts(summary, {"refcoco": "unc"})
    assert [(c["count"], c["met"]) for c in found] == [
        ("refs", True),
        ("images", True),
        ("expressions", False),
    ]
    assert verify_counts(summary, {"refcoco": "google"}) == [] == verify_counts(summary, {})


def test_the_committed_protocols_are_of_published_methods():
    methods = set(read_published(PUBLISHED)["method"])
    assert set(published_protocols(PUBLISHED)["method"]) <= methods
