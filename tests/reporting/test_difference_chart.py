"""The chart of differences: what is drawn where, and what is called told apart."""

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.colors import to_hex

from harness.reporting.context import ReportContext, read_csv
from harness.reporting.difference_chart import Differences, difference_chart, read_differences
from harness.reporting.digest import write_digest
from harness.reporting.retraining import training_half, widened
from harness.reporting.style import MUTED

CONTEXT = ReportContext(study="a", data="synthetic", controls=("blind", "coin"))


def drawn(gaps, half, width=0.005):
    """Labels from the top, each dot's place and whether it is grey, what is written, and the axes."""
    rows = {name: (name, "base", "auto") for name in ("mlp", *gaps)}
    overall = pd.DataFrame(rows.values(), columns=["projector", "variant", "budget"]).assign(tokens_mean=36.0)
    found = {rows[name]: (gap, gap - width, gap + width, 0.5) for name, gap in gaps.items()}
    figure = difference_chart(Differences(CONTEXT, overall, rows["mlp"], found), half)
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_yticklabels()]
    dots = {
        labels[int(line.get_ydata()[0])]: (
            float(line.get_xdata()[0]),
            to_hex(line.get_markeredgecolor()) == MUTED.lower(),
        )
        for line in axes.lines
        if line.get_marker() == "o"
    }
    told = {text.get_text() for text in axes.texts} - {"visual tokens"}
    plt.close(figure)
    return labels, dots, told, axes


def test_rows_stand_by_their_difference_and_controls_beneath():
    gaps = {"low": -0.03, "coin": 0.01, "high": 0.02, "middle": 0.001}
    labels, dots, _, axes = drawn(gaps, None)
    assert labels == ["high", "middle", "low", "coin"]
    assert {name: x for name, (x, _) in dots.items()} == gaps
    assert "minus mlp's" in axes.get_xlabel()


@pytest.mark.parametrize(
    ("half", "grey"),
    [(None, {"none"}), (0.02, {"none", "small"}), (0.05, {"none", "small", "large"})],
)
def test_a_row_is_grey_where_its_widest_interval_holds_zero(half, grey):
    # small: 0.01 from 0, its interval 0.005 wide; large: 0.03 from 0
    _, dots, _, _ = drawn({"none": 0.002, "small": -0.01, "large": 0.03}, half)
    assert {name for name, (_, is_grey) in dots.items() if is_grey} == grey


def test_what_lies_far_off_is_named_at_the_edge_and_does_not_set_the_scale():
    _, dots, told, axes = drawn({"near": -0.02, "blind": -0.348, "coin": 0.125}, 0.02)
    assert set(dots) == {"near"} and told == {"◀ -34.8", "+12.5 ▶"}
    left, right = axes.get_xlim()
    assert -0.06 < left < -0.04 and 0 < right < 0.02  # near's widest interval is [-0.0406, 0.0006]


@pytest.mark.filterwarnings("error")
def test_rows_that_answer_alike_stand_on_the_line():
    _, dots, told, axes = drawn({"same": 0.0, "coin": 0.0}, None, width=0.0)
    assert set(dots) == {"same", "coin"} and not told
    left, right = axes.get_xlim()
    assert left < 0 < right


def test_independent_intervals_add_in_squares():
    assert widened(1.0, 0.7, 1.4, 0.0) == pytest.approx((0.7, 1.4))
    assert widened(0.0, -3.0, 5.0, 4.0) == pytest.approx((-5.0, 41**0.5))


def test_a_study_of_one_row_says_that_there_is_nothing_to_hold_against_it():
    rows = pd.DataFrame(
        [("mlp", "base", "auto", 36.0)], columns=["projector", "variant", "budget", "tokens_mean"]
    )
    figure = difference_chart(Differences(CONTEXT, rows, ("mlp", "base", "auto"), {}), None)
    assert figure.axes[0].texts[0].get_text() == "No row of this study is held against mlp."
    plt.close(figure)


def test_differences_are_those_of_the_tables(reference):
    read = read_differences(reference / "default" / "tables")
    giou = read.overall.set_index(["projector", "variant", "budget"])["giou"]
    assert set(read.gaps) == set(giou.index) - {read.reference}
    for row, (gap, low, high, _) in read.gaps.items():
        assert gap == pytest.approx(giou[row] - giou[read.reference], abs=2e-6) and low <= gap <= high


def test_the_charts_of_snapshots_know_what_study_seeds_says(reference):
    """A study of one seed cannot know what another would change; beside one of several it does."""
    seeds = reference / "seeds"
    tables = read_csv(reference / "default" / "tables" / "overall.csv")
    assert training_half(reference / "default", seeds) is None
    (seeds / "tables").mkdir(parents=True)
    spread = tables.assign(seed_count=3, giou_sd=0.01)
    spread.to_csv(seeds / "tables" / "overall.csv", index=False)
    # sd 0.01 of 7 rows with 2 degrees of freedom each; Student's t at 14 is 2.1448 (tables of any textbook)
    degrees, t = 2 * len(tables), {14: 2.1448}
    assert training_half(reference / "default", seeds) == pytest.approx(t[degrees] * 2**0.5 * 0.01, rel=1e-4)
    chart = reference / "default" / "figures" / "differences.png"
    page = write_digest(reference).read_text()
    assert "](default/figures/differences.png)" in page
    known = chart.read_bytes()
    (seeds / "tables" / "overall.csv").unlink()
    write_digest(reference)
    assert chart.read_bytes() != known
