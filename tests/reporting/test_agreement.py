"""Two runs of a study: shift, spread and rank correlation, worked out by hand."""

import json
from pathlib import Path

import pandas as pd
import pytest
from made_up_study import MADE_BY

from harness.commands.compare import compare
from harness.reporting.agreement import agreement, beyond, reruns
from harness.reporting.digest import write_digest
from harness.reporting.retraining import pretrained_again, variability

# text_blind acts on a trained row: it was not trained, and has no learning rate
RATES = {"svp": 0.1, "mlp": 0.1, "avg_pool": 0.1, "svp_slic": 0.1, "linear": 0.1, "text_blind": None}
ROOT = Path(__file__).resolve().parents[2]


def run(folder, rows=None, **giou):
    """A study's folder with one protocol that counts, one that does not, and two splits."""
    tables = folder / "tables"
    tables.mkdir(parents=True)
    rows = rows or {(name, "base", "auto"): value for name, value in giou.items()}
    keys = [dict(zip(("projector", "variant", "budget"), key, strict=True)) for key in rows]
    pd.DataFrame(
        [
            {**key, "protocol": protocol, "giou": value if protocol == "full" else 0.9}
            for protocol in ("full", "other")
            for key, value in zip(keys, rows.values(), strict=True)
        ]
    ).to_csv(tables / "overall.csv", index=False)
    pd.DataFrame(
        [
            {
                **key,
                "dataset": "toy",
                "split": split,
                "protocol": "full",
                "giou": value + shift,
                "ciou": value / 2,
                "learning_rate": RATES[key["projector"]],
            }
            for key, value in zip(keys, rows.values(), strict=True)
            for split, shift in (("val", 0.02), ("testA", -0.02))
        ]
    ).to_csv(tables / "main.csv", index=False)
    (tables / "context.json").write_text(json.dumps({"study": "main"}))
    return folder


@pytest.fixture
def pair(tmp_path):
    return (
        run(tmp_path / "runs" / "a", svp=0.40, mlp=0.42, avg_pool=0.45, text_blind=0.1),
        run(tmp_path / "runs" / "b", avg_pool=0.44, mlp=0.40, svp=0.41, text_blind=0.5),
    )


def test_shift_spread_and_order_by_hand(pair):
    found = agreement(*pair)
    assert found.rows["projector"].tolist() == ["svp", "mlp", "avg_pool"]
    assert found.rows["difference"].tolist() == pytest.approx([0.01, -0.02, -0.01])
    # squares of 1/60, -1/75 and -1/300 sum to 7/15000; over two, and by two again
    assert found.shift == pytest.approx(-0.02 / 3) and found.sd == pytest.approx((7 / 60000) ** 0.5)
    assert found.spearman == pytest.approx(1 - 6 * 2 / 24)


def test_the_other_way_round_only_the_sign_of_the_shift_changes(pair):
    there, back = agreement(*pair), agreement(*reversed(pair))
    assert (back.shift, back.sd, back.spearman) == pytest.approx((-there.shift, there.sd, there.spearman))


def test_what_moves_all_rows_alike_leaves_no_spread(tmp_path):
    found = agreement(
        run(tmp_path / "a", svp=0.40, mlp=0.42, avg_pool=0.45),
        run(tmp_path / "b", svp=0.3, mlp=0.32, avg_pool=0.35),
    )
    assert found.shift == pytest.approx(-0.1) and found.sd == pytest.approx(0) and found.spearman == 1


def test_a_row_is_beyond_by_what_it_moved_beside_the_others(pair):
    # beside the shift of -2/300 the rows moved by 5, -4 and -1 three-hundredths
    found = agreement(*pair)
    assert beyond(found, 0.012)["projector"].tolist() == ["svp", "mlp"]
    assert beyond(found, 0.015)["projector"].tolist() == ["svp"]
    assert beyond(found, 0.02).empty


def test_too_few_rows_in_common_are_refused(tmp_path, pair):
    with pytest.raises(ValueError, match="share 1 trained rows"):
        agreement(pair[0], run(tmp_path / "c", svp=0.39, text_blind=0.1))
    with pytest.raises(ValueError, match=r"overall\.csv is not there"):
        agreement(pair[0], tmp_path / "nowhere")


def rewrite(file, change):
    table = pd.read_csv(file)
    change(table)
    table.to_csv(file, index=False)


def test_a_row_that_is_the_same_trained_run_is_left_out(tmp_path, pair, capsys, monkeypatch):
    """The scores of the rows that were trained twice are those of ``pair``, and so must be the figures."""
    rest = {"svp_slic": 0.7, "linear": 0.3}
    first = run(tmp_path / "a", svp=0.40, mlp=0.42, avg_pool=0.45, **rest)
    second = run(tmp_path / "b", svp=0.41, mlp=0.40, avg_pool=0.44, **rest)
    expected, found = agreement(*pair), agreement(first, second)
    assert found.same["projector"].tolist() == ["linear", "svp_slic"]
    assert found.rows["projector"].tolist() == ["svp", "mlp", "avg_pool"]
    assert found[1:4] == pytest.approx(expected[1:4])
    assert "Left out were 2 rows: the same trained run, not a second one." in found.told
    assert expected.same.empty and "Left out" not in expected.told
    monkeypatch.chdir(tmp_path)  # where no study of several seeds is kept
    compare(first, second, json=True)
    value = json.loads(capsys.readouterr().out)
    assert [row["projector"] for row in value["same_run"]] == ["linear", "svp_slic"]
    compare(first, second)
    assert "svp_slic                     the same trained run\n" in capsys.readouterr().out


def test_a_row_that_differs_in_one_split_alone_was_trained_twice(tmp_path):
    same = {"svp": 0.4, "mlp": 0.42, "avg_pool": 0.45}
    first, second = run(tmp_path / "a", **same), run(tmp_path / "b", **same)

    def one_digit(table):
        table.loc[table["split"].eq("testA"), "ciou"] += 1e-6

    rewrite(second / "tables" / "main.csv", one_digit)
    found = agreement(first, second)
    assert found.same.empty and found.spearman == 1 and found.shift == 0


def test_nothing_but_the_same_trained_runs_is_refused(tmp_path, pair):
    same = {"svp": 0.4, "mlp": 0.42, "avg_pool": 0.45}
    first, second = run(tmp_path / "a", **same), run(tmp_path / "b", **same, text_blind=0.1)
    with pytest.raises(ValueError, match=r"that \S+/a and \S+/b share \(3\) .*share_runs: false"):
        agreement(first, second)
    with pytest.raises(ValueError, match="share 2 trained rows, beside 1 that are the same trained run"):
        agreement(first, run(tmp_path / "c", svp=0.4, mlp=0.41, avg_pool=0.44))
    with pytest.raises(ValueError, match="same trained runs, not second ones"):
        agreement(ROOT / "results" / "reference" / "main", ROOT / "results" / "reference" / "default")


def test_a_comparison_kept_before_rows_could_be_left_out_is_still_told():
    (kept,) = (text for text in reruns(ROOT / "results" / "reference" / "reruns") if "`main`" in text)
    assert "`main` was run twice (commits 3964279 and 688fb89), on AMD EPYC, 2 cores. The order" in kept
    assert "The order of its 29 trained rows agrees" in kept


def test_two_machines_are_named(tmp_path):
    sides = [{"commit": "a" * 40, "device": "one"}, {"commit": "b" * 40, "device": "another"}]
    moves = {"svp": -0.02, "mlp": 0.001, "avg_pool": 0.011}
    rows = [
        {"projector": name, "variant": "base", "budget": "36", "difference": by} for name, by in moves.items()
    ]
    kept = {"study": "main", "made_by": sides, "told": "They agree.", "rows": rows}
    (tmp_path / "main.json").write_text(json.dumps(kept))
    said = f"Study `main` was run twice (commits {'a' * 7} and {'b' * 7}), on one and on another. They agree."
    said += " Farthest moved svp @36 by -2.0 and avg_pool @36 by +1.1."
    assert reruns(tmp_path) == [said]


def test_seeds_that_are_not_there_are_refused(pair, tmp_path):
    with pytest.raises(
        ValueError, match=r"--seeds: .*nowhere holds no tables/overall\.csv; name the snapshot"
    ):
        compare(*pair, seeds=tmp_path / "nowhere")


def test_what_is_kept_stands_on_the_page_of_snapshots(pair, reference, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where no study of several seeds is kept
    (pair[0] / "provenance.json").write_text(json.dumps(MADE_BY))
    compare(*pair, out=reference / "reruns" / "main.json", json=True)
    value = json.loads(capsys.readouterr().out)
    assert value == json.loads((reference / "reruns" / "main.json").read_text())
    assert value["made_by"] == [MADE_BY, None] and value["seed_half"] is None
    text = write_digest(reference).read_text()
    assert f"`main` was run twice (commits {MADE_BY['commit'][:7]} and not kept), on a machine." in text
    assert "ρ = 0.50" in text and "moved by -0.7 points" in text and "deviation of 1.08" in text


def test_encoders_pretrained_again_move_a_row_by_the_difference_of_its_variants(tmp_path):
    rows = {
        ("svp", "base", "auto"): 0.40,
        ("avg_pool", "base", "9"): 0.41,
        ("mlp", "base", "auto"): 0.42,  # not run again
        ("svp", "again", "auto"): 0.433,
        ("avg_pool", "again", "9"): 0.402,
        ("text_blind", "base", "auto"): 0.1,  # not trained
        ("text_blind", "again", "auto"): 0.2,
    }
    assert variability(tmp_path) == [] and pretrained_again(tmp_path / "pretraining") is None
    run(tmp_path / "pretraining", rows)
    (said,) = variability(tmp_path)
    assert "moved svp by +3.3, avg_pool @9 by -0.8 points" in said
