"""Claims are measured in the snapshots' tables, and the verdict follows from interval and bar alone."""

import math
import re
import shutil
from pathlib import Path

import pytest

from harness.reporting.claims import (
    Check,
    Claim,
    Finding,
    claims_page,
    find,
    rank_interval,
    read_claims,
)
from harness.reporting.context import read_csv, write_csv
from harness.reporting.digest import write_digest
from harness.reporting.retraining import retraining

ROOT = Path(__file__).resolve().parents[2]


def measured(reference, **values) -> Finding:
    return find(Check(study="default", at_least=0, **values), reference / "default")


def test_a_gain_is_the_difference_of_the_means_and_the_nearest_row_decides(reference):
    overall = read_csv(reference / "default" / "tables" / "overall.csv")
    giou = {(r.projector, r.variant, str(r.budget)): r.giou for r in overall.itertuples()}
    ours = giou["pool", "base", "36"]
    one = measured(reference, measure="giou", row="pool..36", minus=["pool..9"])
    assert one.value == pytest.approx(ours - giou["pool", "base", "9"], abs=1e-5)
    assert one.low < one.value < one.high and one.against == "pool @9"
    both = measured(reference, measure="giou", row="pool..36", minus=["pool..9", "dense", "segments"])
    assert both.against.startswith("dense") and both.value == pytest.approx(
        ours - giou["dense", "base", "auto"], abs=1e-5
    )
    back = measured(reference, measure="giou", row="dense", minus=["pool..36"])
    assert (back.value, back.low, back.high) == pytest.approx((-both.value, -both.high, -both.low))


def test_a_rival_further_off_but_less_certain_bounds_the_gain(reference):
    tables = reference / "default" / "tables"
    pairs = read_csv(tables / "differences.csv")
    # dense minus each: the nearest at +2.0 [+0.5, +3.5], another at +2.1 [-0.1, +4.3]
    for budget, found in (("36", (0.020, 0.005, 0.035)), ("9", (0.021, -0.001, 0.043))):
        is_pair = pairs["projector"].eq("dense") & pairs["other_projector"].eq("pool")
        is_pair &= pairs["other_budget"].eq(budget) & pairs["dataset"].eq("all")
        assert is_pair.sum() == 1
        pairs.loc[is_pair, ["giou_difference", "low", "high"]] = found
    write_csv(tables / "differences.csv", pairs)
    alone = measured(reference, measure="giou", row="dense", minus=["pool..36"])
    assert alone.verdict(0) == "reproduced here"
    both = measured(reference, measure="giou", row="dense", minus=["pool..36", "pool..9"])
    assert both == (pytest.approx(0.02), pytest.approx(-0.001), pytest.approx(0.035), "pool @36")
    assert both.verdict(0) == "not told apart"


@pytest.mark.parametrize(
    ("bar", "verdict"),
    [
        (0.05, "reproduced here"),
        (0.06, "not told apart"),
        (0.08, "not told apart"),
        (0.081, "not reproduced here"),
    ],
)
def test_the_verdict_follows_from_interval_and_bar(bar, verdict):
    assert Finding(0.07, 0.05, 0.08, "x").verdict(bar) == verdict


def test_rows_that_answer_alike_prove_nothing():
    assert Finding(0.0, 0.0, 0.0, "x").verdict(0).startswith("not measured here")
    assert Finding(0.0, 0.0, 0.0, "x").verdict(-0.01).startswith("not measured here")


def test_savings_against_worked_out_shares(reference):
    tokens = measured(reference, measure="tokens_saved", row="pool..36", minus=["dense"])
    assert tokens.value == tokens.low == tokens.high == pytest.approx(1 - 36 / 144)
    # made up: pool at 36 trains 1.2 and predicts 1.1 times as fast as dense
    training = measured(reference, measure="training_saved", row="pool..36", minus=["dense"])
    assert training.value == pytest.approx(1 - 1 / 1.2, abs=1e-3)
    inference = measured(reference, measure="inference_saved", row="pool..36", minus=["dense"])
    assert inference.value == pytest.approx(1 - 1 / 1.1, abs=1e-3)
    main = read_csv(reference / "default" / "tables" / "main.csv")
    pool, dense = main["projector"].eq("pool") & main["budget"].eq("36"), main["projector"].eq("dense")
    for row, low, high in ((pool, 1.0, 2.0), (dense, 1.0, 1.0)):
        main.loc[row, ["speedup_train_low", "speedup_train_high"]] = low, high
    write_csv(reference / "default" / "tables" / "main.csv", main)
    training = measured(reference, measure="training_saved", row="pool..36", minus=["dense"])
    assert (training.low, training.high) == (0, 0.5)
    for row, speeds in ((pool, (2.0, 3.0, 4.0)), (dense, (1.0, 1.5, 2.0))):
        main.loc[row, [f"speedup_train{end}" for end in ("_low", "", "_high")]] = speeds
    write_csv(reference / "default" / "tables" / "main.csv", main)
    training = measured(reference, measure="training_saved", row="pool..36", minus=["dense"])
    # the slowest of ours beside the fastest of theirs, and the other way round
    assert (training.low, training.value, training.high) == (1 - 2 / 2, 1 - 1.5 / 3, 1 - 1 / 4)
    with pytest.raises(ValueError, match="no speedup_train of coin_flip"):
        measured(reference, measure="training_saved", row="coin_flip..36", minus=["dense"])


def test_false_positives_are_compared_with_those_of_the_row_that_has_fewest(reference):
    """Made up: a prediction lies wholly in its target, so that only what is added here is off it."""
    tables = reference / "default" / "tables"
    pairs = read_csv(tables / "differences.csv")
    # dense stands before both pools in the table, pool at 36 before pool at 9
    shares = {("dense", "36"): (-0.03, -0.05, -0.01), ("dense", "9"): (-0.02, -0.025, 0.001)}
    shares["pool", "9"] = (0.01, -0.002, 0.02)
    for (ours, budget), found in shares.items():
        is_pair = pairs["projector"].eq(ours) & pairs["other_projector"].eq("pool")
        is_pair &= pairs["other_budget"].eq(budget) & pairs["dataset"].eq("all")
        assert is_pair.sum() == 1
        pairs.loc[is_pair, ["fp_share_difference", "fp_share_low", "fp_share_high"]] = found
    write_csv(tables / "differences.csv", pairs)
    kind = {"measure": "false_positives_saved"}
    found = measured(reference, **kind, row="dense", minus=["pool..36", "pool..9"])
    assert found == (pytest.approx(0.02), pytest.approx(-0.001), pytest.approx(0.025), "pool @9")
    back = measured(reference, **kind, row="pool..36", minus=["dense"])
    assert back[:3] == pytest.approx((-0.03, -0.05, -0.01)) and back.verdict(0) == "not reproduced here"
    test = {**kind, "study": "default", "row": "dense", "minus": ["pool..36"], "at_least": 0}
    page = claims_page([Claim(claim="cleaner", published="less", test=test)], reference)
    assert "outside the target, pool @36 minus this, of dense" in page
    assert "| +0.0 | +3.0 [+1.0, +5.0] | **reproduced here** |" in page
    pairs["fp_share_low"] = math.nan
    write_csv(tables / "differences.csv", pairs)
    with pytest.raises(ValueError, match="no fp_share_difference of dense and pool @9"):
        measured(reference, **kind, row="dense", minus=["pool..9"])


def test_a_snapshot_older_than_a_column_leaves_its_claim_unmeasured(reference):
    tables = reference / "default" / "tables"
    for name in ("scores", "overall", "main", "differences"):
        table = read_csv(tables / f"{name}.csv")
        write_csv(tables / f"{name}.csv", table.drop(columns=[c for c in table if c.startswith("fp_share")]))
    test = {"study": "default", "row": "dense", "minus": ["pool..36"], "at_least": 0}
    claims = [
        Claim(claim=measure, published="so", test={**test, "measure": measure})
        for measure in ("giou", "false_positives_saved")
    ]
    giou, false = [line for line in claims_page(claims, reference).splitlines() if line.startswith("| ")][1:]
    assert "gIoU minus pool @36" in giou
    assert "not in this snapshot: the differences.csv of study default lacks fp_share_difference" in false
    assert false.endswith("not measured here |")
    assert "## default" in write_digest(reference).read_text()


def test_a_rank_correlation_gets_its_interval(reference):
    # Bonett and Wright: tanh(atanh 0.5 +- 1.96 sqrt(1.125 / 97)), worked out by hand
    assert rank_interval(0.5, 100) == pytest.approx((0.5, 0.3259, 0.6413), abs=1e-4)
    assert rank_interval(-1.0, 9) == (-1, -1, -1)
    # made up: a token more for every object
    found = measured(reference, measure="tokens_follow_objects", row="segments")
    assert found[:3] == (1, 1, 1) and found.verdict(0) == "reproduced here"


@pytest.fixture
def seeds(reference, tmp_path):
    """The reference, with a study of three seeds of one row, two of another and one of a third."""
    folder = shutil.copytree(reference, tmp_path / "with_seeds")
    tables = folder / "seeds" / "tables"
    tables.mkdir(parents=True)
    rows = ["full,3,0.003", "full,2,0.004", "full,1,", "sampled,3,0.5"]
    (tables / "overall.csv").write_text("\n".join(["protocol,seed_count,giou_sd", *rows]) + "\n")
    return folder


def test_training_again_widens_the_interval_of_rows_trained_once(reference, seeds):
    assert retraining(reference / "seeds") is None
    again = retraining(seeds / "seeds")
    # variances 9e-6 and 16e-6 at 2 and 1 degrees of freedom; Student's t of 3 at 0.975 is 3.182 (any table)
    assert again.sd == pytest.approx((34e-6 / 3) ** 0.5) and again.freedom == 3
    assert again.half() == 2 * again.half(4) == pytest.approx(3.182 * (2 * 34e-6 / 3) ** 0.5, rel=1e-3)
    wide = Finding(0.07, 0.04, 0.09, "x").widened(0.04)
    assert (wide.value, wide.low, wide.high) == pytest.approx((0.07, 0.02, 0.07 + 0.002**0.5))
    test = {"measure": "giou", "row": "dense", "minus": ["pool..9"], "at_least": 0.03, "study": "default"}
    claim = Claim(claim="better", published="+3", test=test)
    before, after = (claims_page([claim], folder) for folder in (reference, seeds))
    said = "standard deviation of 0.34 points (3 degrees of freedom)"
    assert said in " ".join(after.split()) and "degrees of freedom" not in before
    narrow, wider = (
        [float(x) for x in re.search(r"\+([\d.]+) \[\+([\d.]+), \+([\d.]+)\]", page).groups()]
        for page in (before, after)
    )
    half = 100 * again.half()
    assert narrow[0] == wider[0]
    assert wider[1] == pytest.approx(wider[0] - math.hypot(narrow[0] - narrow[1], half), abs=0.11)
    assert wider[2] == pytest.approx(wider[0] + math.hypot(narrow[2] - narrow[0], half), abs=0.11)


def test_means_of_several_seeds_are_widened_by_their_own_spread(reference):
    tables = reference / "default" / "tables"
    test = {"measure": "giou", "row": "dense", "minus": ["pool..9"], "at_least": 0.03, "study": "default"}
    claim = Claim(claim="better", published="+3", test=test)
    narrow = claims_page([claim], reference)
    overall = read_csv(tables / "overall.csv")
    overall["seed_count"], overall["giou_sd"] = 4, 0.02
    overall.loc[overall["projector"].eq("coin_flip"), "giou_sd"] = 0.0  # as of an oracle, which no seed moves
    overall.loc[overall["projector"].eq("segments"), "giou_sd"] = math.nan  # as of rows that failed
    write_csv(tables / "overall.csv", overall)
    values = [
        [float(x) for x in re.search(r"\+([\d.]+) \[\+([\d.]+), \+([\d.]+)\]", page).groups()]
        for page in (narrow, claims_page([claim], reference))
    ]
    # four rows of four seeds: Student's t of 12 at 0.975 is 2.179 (any table); a mean of four, twice
    half = 100 * 2.179 * 0.02 * (2 / 4) ** 0.5
    assert overall["giou_sd"].gt(0).sum() == 4 and values[0][0] == values[1][0]
    assert "gIoU intervals widened by ±3.1 for training again" in claims_page([claim], reference)
    assert values[1][1] == pytest.approx(
        values[0][0] - math.hypot(values[0][0] - values[0][1], half), abs=0.11
    )


def test_the_page_says_what_is_not_measured_and_why(reference):
    test = {"measure": "giou", "row": "dense", "minus": ["pool..9"], "at_least": 0.03}
    claims = [
        Claim(claim="better", published="+3", test={**test, "study": "default"}, caveat="made up"),
        Claim(claim="elsewhere", published="+1", test={**test, "study": "never_run"}),
        Claim(claim="faster", published="17 ms", reason="needs a GPU"),
    ]
    page = claims_page(claims, reference)
    better, elsewhere, faster = [line for line in page.splitlines() if line.startswith("| ")][1:]
    assert "gIoU minus pool @9, of dense" in better and "made up" in better and "| +3.0 | +" in better
    assert better.endswith("**reproduced here** |")
    assert "study never_run has no snapshot" in elsewhere and elsewhere.endswith("not measured here |")
    assert "needs a GPU" in faster and faster.endswith("not measured here |")
    assert "- default: effort quick, commit 0123456, on a machine" in page


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("claim: x", "must hold a list"),
        ("- {claim: x, published: y}", "claim 1: .*needs a test or a reason"),
        ("- {claim: x, published: y, reason: z, tets: 1}", "claim 1: tets"),
        (
            "- {claim: x, published: y, test: {measure: giou, study: s, row: a, at_least: 0}}",
            "giou needs minus",
        ),
    ],
)
def test_a_wrong_claim_is_refused_by_number(tmp_path, text, message):
    (tmp_path / "claims.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_claims(tmp_path / "claims.yaml")


def test_a_row_that_is_not_there_is_named(reference):
    with pytest.raises(ValueError, match=r"no pair of dense and gone\.base\.auto"):
        measured(reference, measure="giou", row="dense", minus=["gone"])
    with pytest.raises(ValueError, match=r"tokens\.csv has no row gone\.base\.auto"):
        measured(reference, measure="tokens_follow_objects", row="gone")


def test_the_committed_page_is_that_of_the_committed_snapshots():
    reference = ROOT / "results" / "reference"
    page = claims_page(read_claims(ROOT / "results" / "published" / "claims.yaml"), reference)
    assert (reference / "claims.md").read_text() == page
    assert "has no snapshot" not in page
