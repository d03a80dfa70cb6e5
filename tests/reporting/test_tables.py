"""Tables: a golden study worked out by hand, exact columns, equal bytes, refusals."""

import json

import numpy as np
import pandas as pd
import pytest
from made_up_tables import cell, golden_rows, write

from harness.reporting.aggregate import score_tables
from harness.reporting.context import ReportContext, order_rows, read_csv, split_order
from harness.reporting.tables import TABLE_FILES, tables_stage

CONTRACT_SCORES = (
    "projector, variant, budget, dataset, split, protocol, giou, giou_low, giou_high, giou_sd, ciou, "
    "ciou_low, ciou_high, p50, p60, p70, p80, p90, n_expressions, n_images, tokens_mean, "
    "tokens_p5, tokens_p95, seed_count, status, "
    "fp_share"  # beside the agreed ones
).split(", ")
CONTRACT_EFFICIENCY = (
    "projector, variant, budget, stage, case, batch, median_ms, iqr_ms, flops, bound_ms, roofline_fraction, "
    "peak_bytes, device, dtype, attention"
).split(", ")


def test_golden_table_by_hand():
    ours = ReportContext(study="golden", data="synthetic", resamples=50)
    scores, overall, differences = score_tables(golden_rows(), ours)
    row = scores.set_index(["projector", "split"]).loc[("one", "val")]
    # seed 0: IoU 1/2, 3/4, 0 -> 5/12; seed 1: 1, 1/4, 1 -> 3/4
    assert row["giou"] == pytest.approx((5 / 12 + 3 / 4) / 2)
    assert row["giou_sd"] == pytest.approx((3 / 4 - 5 / 12) / 2**0.5)
    # seed 0: 80/200; seed 1: 170/200
    assert row["ciou"] == pytest.approx((0.4 + 0.85) / 2)
    assert row["p50"] == pytest.approx((1 / 3 + 2 / 3) / 2)
    assert row["p80"] == pytest.approx((0 + 2 / 3) / 2)
    assert (row["n_expressions"], row["n_images"], row["seed_count"]) == (3, 2, 2)
    assert row["tokens_mean"] == pytest.approx((10 + 10 + 20) / 3)
    mean = overall.set_index("projector")
    # testA: seed 0 1/4, seed 1 3/4 -> 1/2; two: val (0.9 + 1 + 0.25) / 3, testA 0
    assert mean.loc["one", "giou"] == pytest.approx((7 / 12 + 1 / 2) / 2)
    assert mean.loc["two", "giou"] == pytest.approx((2.15 / 3 + 0) / 2)
    assert pd.isna(mean.loc["two", "giou_sd"])
    gap = differences[differences["split"] == "all"].iloc[0]
    assert gap["giou_difference"] == pytest.approx(13 / 24 - 2.15 / 6)
    # Two images: a resample holds one of them twice, or both. gIoU of 'one' is then 0.625 (image 1
    # alone: seeds 0.625 and 0.625), 0.5 (image 2 alone: 0 and 1) or 7/12.
    assert row["giou_low"] == pytest.approx(0.5) and row["giou_high"] == pytest.approx(0.625)
    single = scores.set_index(["projector", "split"]).loc[("one", "testA")]
    assert pd.isna(single["giou_low"]) and pd.isna(single["giou_high"])


def test_false_positives_by_hand():
    """``one`` predicts pixels off the target, more of them in seed 1; ``two`` predicts all of its target."""
    rows = golden_rows()
    # (projector, seed, sent) -> predicted pixels; what is left out are the intersection's
    wider = {("one", 0, 1): 60, ("one", 1, 1): 110, ("one", 1, 4): 80, ("two", 0, 3): 30, ("two", 0, 4): 5}
    key = zip(rows["projector"], rows["seed"], rows["sent_id"], strict=True)
    rows["pred_area"] = [wider.get(k, area) for k, area in zip(key, rows["pred_area"], strict=True)]
    ours = ReportContext(study="golden", data="synthetic", resamples=400)
    scores, overall, pairs = score_tables(rows, ours)
    share = scores.set_index(["projector", "split"])["fp_share"]
    # val, predicted: seed 0 60 + 30 + 0, of which 80 hit; seed 1 110 + 10 + 60, of which 170 hit
    assert share["one", "val"] == pytest.approx((10 / 90 + 10 / 180) / 2)
    # testA: seed 0 20 of 20 hit; seed 1 60 of 80
    assert share["one", "testA"] == pytest.approx((0 + 20 / 80) / 2)
    assert share["two", "val"] == pytest.approx(15 / 160) and share["two", "testA"] == 1
    mean = overall.set_index("projector")["fp_share"]
    assert mean["one"] == pytest.approx((10 / 90 + 10 / 180 + 20 / 80) / 4)
    assert mean["two"] == pytest.approx((15 / 160 + 1) / 2)
    gap = pairs[pairs["split"].eq("all")].iloc[0]
    assert gap["fp_share_difference"] == pytest.approx(mean["one"] - mean["two"])
    # val's two photographs are drawn with replacement: the second alone has no false positive in one
    # (0/60 in seed 1), but in seed 0 no predicted pixel either, and a share of nothing is not defined
    assert pd.isna(gap["fp_share_low"]) and pd.isna(gap["fp_share_p_value"]) and gap["low"] < gap["high"]
    rows.loc[rows["projector"].eq("one") & rows["seed"].eq(0) & rows["sent_id"].eq(3), "pred_area"] = 10
    val = score_tables(rows, ours)[2].set_index("split").loc["val"]
    # of one: photograph 1 alone 10/90 and 10/120, 2 alone 10/10 and 0/60; of two: 0/130 and 15/30
    assert val["fp_share_low"] == pytest.approx((1 + 0) / 2 - 15 / 30)
    assert val["fp_share_high"] == pytest.approx((10 / 90 + 10 / 120) / 2)


def test_where_nothing_was_predicted_no_pixel_can_be_false():
    rows = golden_rows()
    rows.loc[rows["split"].eq("testA") & rows["projector"].eq("two"), ["pred_area", "intersection"]] = 0
    scores, overall, _ = score_tables(rows, ReportContext(study="golden", data="synthetic", resamples=20))
    share = scores.set_index(["projector", "split"])["fp_share"]
    assert pd.isna(share["two", "testA"]) and share["two", "val"] == 0
    assert pd.isna(overall.set_index("projector").loc["two", "fp_share"])


def test_columns_and_key_are_the_contract(tables):
    scores = read_csv(tables / "scores.csv")
    assert list(scores.columns) == CONTRACT_SCORES
    assert not scores.duplicated(CONTRACT_SCORES[:6]).any()
    assert list(read_csv(tables / "efficiency.csv").columns) == CONTRACT_EFFICIENCY
    main = read_csv(tables / "main.csv")
    added = ["speedup_infer", "speedup_train", "parameters", "layer_tokens", "learning_rate"]
    added += [f"speedup_{kind}_{end}" for kind in ("infer", "train") for end in ("low", "high")]
    assert list(main.columns) == [*CONTRACT_SCORES, *added]
    pd.testing.assert_frame_equal(main[CONTRACT_SCORES], scores)
    assert sorted(p.name for p in tables.iterdir()) == sorted(TABLE_FILES)


def test_equal_bytes_whatever_the_order_of_files(made_up, tables, tmp_path):
    turned = {**made_up, "scores": made_up["scores"][::-1]}
    again = write(turned, tmp_path)
    for name in TABLE_FILES:
        assert (again / name).read_bytes() == (tables / name).read_bytes(), name


def test_budgets_stay_text_and_rows_keep_the_configs_order(tables):
    scores = read_csv(tables / "scores.csv")
    assert set(scores["budget"]) == {"auto", "36", "9"}
    assert list(dict.fromkeys(scores["projector"])) == [
        "dense",
        "pool",
        "abstractor",
        "segments",
        "coin_flip",
    ]


def test_known_effects_come_out(tables):
    overall = read_csv(tables / "overall.csv").set_index(["projector", "variant", "budget"])
    for row, level in {("dense", "base", "auto"): 0.66, ("coin_flip", "base", "36"): 0.35}.items():
        assert overall.loc[row, "giou_low"] < level < overall.loc[row, "giou_high"]
    pairs = read_csv(tables / "differences.csv")
    one = pairs[
        (pairs["projector"] == "pool") & (pairs["other_projector"] == "coin_flip") & (pairs["budget"] == "36")
    ]
    assert len(one) == 5 and (one["low"] > 0).all()
    phenomena = read_csv(tables / "phenomena.csv")
    assert set(phenomena["phenomenon"]) == {"location", "attribute", "relation"}
    every = phenomena[phenomena["dataset"] == "all"].groupby("projector")["n_expressions"].sum()
    assert every["dense"] == 24 * 3 * 4


def test_phenomena_equal_a_plain_mean(made_up, tables):
    rows = pd.read_parquet(made_up["scores"][0]).merge(
        pd.read_parquet(made_up["prepared"] / "expressions.parquet"),
        on=["dataset", "split", "ref_id", "sent_id"],
    )
    part = rows[(rows["dataset"] == "toyg") & (rows["phenomenon"] == "relation")]
    expected = np.mean([i / u for i, u in zip(part["intersection"], part["union"], strict=True)])
    table = read_csv(tables / "phenomena.csv")
    got = table[
        (table["projector"] == "dense") & (table["dataset"] == "toyg") & (table["phenomenon"] == "relation")
    ]
    assert got["giou"].item() == pytest.approx(expected, abs=1e-6)


def test_adaptive_tokens_are_correlated_with_objects(made_up, tables):
    tokens = read_csv(tables / "tokens.csv").set_index(["projector", "variant"])
    assert tokens.loc[("segments", "base"), "spearman_rho"] == pytest.approx(1)  # made that way
    assert pd.isna(tokens.loc[("dense", "base"), "spearman_rho"])
    assert "Spearman's ρ = 1.00 (p < 0.001, 96 images)" in (tables / "main.md").read_text()


def test_failures_are_said(made_up, tmp_path):
    folder = tmp_path / "scores"
    folder.mkdir()
    paths = []
    for path in made_up["scores"]:
        frame = pd.read_parquet(path)
        if path.name.startswith("dense"):
            frame["status"] = "failed: out of memory"
        if path.name.startswith("pool.base.9"):
            frame.loc[frame.index[:2], "status"] = "failed: no image"
        paths.append(folder / path.name)
        frame.to_parquet(paths[-1])
    out = write({**made_up, "scores": paths}, tmp_path / "t")
    text = (out / "main.md").read_text()
    assert (
        cell(text, "dense", "toy val") == "failed"
        and cell(text, "dense", "mean gIoU over splits") == "failed"
    )
    assert "failed: 72 of 72 expressions (out of memory)" in text
    assert cell(text, "pool", "toy val") != "failed"
    scores = read_csv(out / "scores.csv").set_index(["projector", "budget", "dataset", "split"])
    assert scores.loc[("dense", "auto", "toy", "val"), ["giou", "fp_share"]].isna().all()
    assert scores.loc[("pool", "9", "toy", "val"), "status"] == "failed: 2 of 72 expressions (no image)"


def test_seeds_that_scored_other_counts_are_refused():
    rows = golden_rows()
    with pytest.raises(ValueError, match=r"seeds of one\.base\.auto scored different numbers"):
        score_tables(
            rows[~((rows["seed"] == 1) & (rows["sent_id"] == 2))],
            ReportContext(study="golden", data="synthetic", resamples=20),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda v: v["rows"][0].pop("device"), r"rows\.0\.device"),
        (lambda v: v.update(extra=1), "extra"),
        (lambda v: v["relative"].append(v["relative"][0]), "relative of dense.base.auto twice"),
    ],
)
def test_a_wrong_efficiency_file_is_refused(made_up, tmp_path, change, message):
    value = json.loads(made_up["efficiency"][0].read_text())
    change(value)
    path = tmp_path / "bad.json"
    path.write_text(json.dumps(value))
    with pytest.raises(ValueError, match=message):
        write({**made_up, "efficiency": [path]}, tmp_path / "t")


def test_no_efficiency_leaves_cells_empty(made_up, tmp_path):
    out = write({**made_up, "efficiency": []}, tmp_path)
    assert read_csv(out / "main.csv")[["speedup_infer", "speedup_train", "parameters"]].isna().all(axis=None)
    assert len(read_csv(out / "efficiency.csv")) == 0


def test_what_the_search_found_has_a_table_and_a_sentence(made_up, tmp_path):
    same = {"n_expressions": 1200, "n_images": 100, "stage1_steps": 88, "stage2_steps": 44}
    same |= {"learning_rates": [1e-4, 3e-4]}
    searches = {
        "grid.base.144": {"learning_rate": 3e-4, "giou": [0.30, 0.32], **same},
        "words.wide.auto": {"learning_rate": 1e-4, "giou": [0.28, None], **same},
    }
    context = ReportContext.from_study(made_up["config"], tuning=(3, 1), order=("words", "grid"))
    tables_stage(
        made_up["scores"], made_up["efficiency"], made_up["prepared"], tmp_path, context, searches=searches
    )
    table = read_csv(tmp_path / "learning_rates.csv")
    assert table["projector"].tolist() == ["words", "words", "grid", "grid"]
    assert table["factor"].tolist() == [1, 3, 1, 3] and table["chosen"].tolist() == [True, False, False, True]
    assert table["giou"].fillna(-1).tolist() == [0.28, -1, 0.30, 0.32] and set(table["stage1_steps"]) == {88}
    assert table.loc[0, ["variant", "budget"]].tolist() == ["wide", "auto"]
    text = (tmp_path / "main.md").read_text()
    assert "of 2 rows 1 took 1 times, 1 took 3 times the recipe's rate, by gIoU on 1,200 expressions" in text
    assert "Of 4 trials 1 diverged." in text


def test_without_a_search_its_table_is_empty_and_nothing_is_said(tables):
    assert read_csv(tables / "learning_rates.csv").empty
    assert "search" not in (tables / "main.md").read_text()


def test_an_unknown_context_key_is_refused():
    with pytest.raises(ValueError, match="notess"):
        ReportContext.checked({"study": "x", "data": "synthetic", "notess": []})


def test_variants_stand_in_the_configs_order():
    """A ladder reads from its first step to its last, whatever the steps are called."""
    names = ["third", "base", "zeroth", "another"]
    rows = pd.DataFrame({"projector": "svp", "variant": names, "budget": "auto"})
    context = ReportContext(
        study="x", data="synthetic", order=("svp",), variants=("zeroth", "base", "third", "unused")
    )
    assert order_rows(rows, context)["variant"].tolist() == ["zeroth", "base", "third", "another"]
    by_name = order_rows(rows, context.model_copy(update={"variants": ()}))
    assert by_name["variant"].tolist() == sorted(names)


def test_splits_stand_in_the_fields_order():
    pairs = [("refcocog", "test"), ("refcoco+", "testB"), ("refcoco", "testA"), ("refcoco", "val")]
    pairs += [("refcocog", "val"), ("refcoco+", "val")]
    assert split_order(pairs) == [
        ("refcoco", "val"),
        ("refcoco", "testA"),
        ("refcoco+", "val"),
        ("refcoco+", "testB"),
        ("refcocog", "val"),
        ("refcocog", "test"),
    ]
