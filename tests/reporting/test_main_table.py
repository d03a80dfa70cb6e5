"""The main table as people read it: what is bold, what its caption and its notes say, LaTeX."""

import json
import re

import numpy as np
import pandas as pd
from made_up_study import make_study
from made_up_tables import cell, golden_rows, write

from harness.reporting.aggregate import score_tables
from harness.reporting.context import ReportContext, read_csv
from harness.reporting.render import adaptivity_notes, main_markdown, main_tex
from harness.reporting.tables import tables_stage


def markdown(scores, overall, differences, context):
    main = scores.assign(speedup_infer=np.nan, speedup_train=np.nan, parameters=pd.NA)
    return main_markdown(main, overall, differences, context)


def test_rows_of_the_very_same_counts_share_a_sentence():
    counts = {"tokens_min": 3.0, "tokens_max": 9.0, "spearman_rho": 0.5, "p_value": 0.0001, "n_images": 7}
    tokens = pd.DataFrame(
        [
            {"projector": "svp", "variant": "base", "budget": "auto", **counts},
            {"projector": "setok", "variant": "base", "budget": "auto", **counts, "tokens_max": 8.0},
            {"projector": "svp", "variant": "wide", "budget": "auto", **counts},
            {"projector": "mlp", "variant": "base", "budget": "auto", **counts, "spearman_rho": np.nan},
        ]
    )
    context = ReportContext.checked({"study": "s", "data": "synthetic"})
    told = " against objects in the image: Spearman's ρ = 0.50 (p < 0.001, 7 images)."
    assert adaptivity_notes(tokens, context) == [
        f"Visual tokens of svp, svp (wide){told}",
        f"Visual tokens of setok{told}",
    ]


def test_bold_are_the_best_and_what_is_not_told_apart_from_it_and_never_a_control():
    key = ["projector", "variant", "budget"]
    # mean over splits, and on val; cIoU is a point less
    giou = {"pool": (0.437, 0.440), "dense": (0.459, 0.445), "mean": (0.446, 0.455), "last": (0.40, 0.41)}
    giou |= {"coin_flip": (0.458, 0.454)}
    rows = pd.DataFrame([[name, "base", "auto"] for name in giou], columns=key)
    rows = rows.assign(protocol="full", status="ok", seed_count=1, n_expressions=9, giou_sd=np.nan)
    rows = rows.assign(tokens_mean=9.0, tokens_p5=9.0, tokens_p95=9.0)
    frames = []
    for k in (0, 1):
        value = pd.Series([v[k] for v in giou.values()])
        bounds = {"giou_low": value - 0.01, "giou_high": value + 0.01}
        frames.append(rows.assign(giou=value, ciou=value - 0.01, **bounds))
    overall, val = frames[0].assign(n_splits=1), frames[1].assign(dataset="toy", split="val")
    # (place, row, other) -> interval of row minus other: dense is best on the mean, mean on val
    found = {
        ("all", "pool", "dense"): (-0.030, -0.014),
        ("all", "dense", "mean"): (-0.001, 0.027),
        ("all", "dense", "last"): (0.04, 0.08),
        ("all", "dense", "coin_flip"): (-0.01, 0.012),
        ("all", "pool", "mean"): (-0.02, 0.01),  # neither is the best
        ("val", "pool", "mean"): (-0.033, 0.0),
        ("val", "dense", "mean"): (-0.020, -0.001),
        ("val", "mean", "last"): (0.03, 0.06),
        ("val", "mean", "coin_flip"): (-0.01, 0.012),
        ("val", "pool", "dense"): (-0.02, 0.01),
    }
    pairs = pd.DataFrame(
        [
            [
                row,
                "base",
                "auto",
                other,
                "base",
                "auto",
                place.replace("val", "toy"),
                place,
                "full",
                low,
                high,
            ]
            for (place, row, other), (low, high) in found.items()
        ],
        columns=[*key, *(f"other_{k}" for k in key), "dataset", "split", "protocol", "low", "high"],
    ).assign(giou_difference=0.0, p_value=0.5)
    ours = ReportContext(study="s", data="synthetic", controls=("coin_flip",))
    text = markdown(val, overall, pairs, ours)
    expected = {
        "dense": ("**45.9** ±1.0", "44.5 (43.5)"),
        "mean": ("**44.6** ±1.0", "**45.5** (**44.5**)"),
        "pool": ("43.7 ±1.0", "**44.0** (43.0)"),
        "last": ("40.0 ±1.0", "41.0 (40.0)"),
        "coin_flip": ("45.8 ±1.0", "45.4 (44.4)"),
    }
    columns = ("mean gIoU over splits", "toy val")
    assert {name: tuple(cell(text, name, column) for column in columns) for name in giou} == expected
    legend = "Bold: best, and each whose paired gIoU difference to it has a 95 % interval over images"
    assert text.count(legend) == 1
    main = val.assign(speedup_infer=np.nan, speedup_train=np.nan, parameters=pd.NA)
    latex = main_tex(main, overall, pairs, ours)
    bold = re.findall(r"\\textbf\{([\d.]+)\}", latex)
    assert sorted(bold) == ["44.0", "44.5", "44.6", "45.5", "45.9"]
    assert "underline" not in latex and "each whose paired gIoU difference to it" in " ".join(latex.split())


def test_nobody_is_best_where_nothing_was_found(tmp_path):
    study = make_study(tmp_path, rows={(name, "base", "auto"): (0.5, 144) for name in ("dense", "twin")})
    for file in study["scores"]:
        pd.read_parquet(file).assign(intersection=0, iou=0.0, pred_area=0).to_parquet(file)
    text = (write(study, tmp_path / "tables") / "main.md").read_text()
    assert cell(text, "dense", "mean gIoU over splits") == "0.0 ±0.0"
    assert "**" not in text and "Bold" not in text and "No row finds anything of any target here" in text


def test_the_tables_stage_marks_by_its_own_differences(tmp_path):
    rows = {("dense", "base", "auto"): (0.66, 144), ("twin", "base", "auto"): (0.66, 144)}
    rows[("worse", "base", "auto")] = (0.5, 144)
    out = write(make_study(tmp_path, rows=rows), tmp_path / "tables")
    overall = read_csv(out / "overall.csv").set_index("projector")["giou"]
    assert f"{overall['dense']:.3f}" != f"{overall['twin']:.3f}"  # no tie in print
    text = (out / "main.md").read_text()
    bold = {name: cell(text, name, "mean gIoU over splits").startswith("**") for name in overall.index}
    assert bold == {"dense": True, "twin": True, "worse": False}


def test_groups_and_caption_of_the_markdown_table(tables):
    text = (tables / "main.md").read_text()
    assert text.index("*controls*") > text.index("*9 tokens*") > text.index("*36 tokens*")
    assert "Synthetic scenes" in text and "Effort: quick" in text and "Superpixels: made up." in text
    assert cell(text, "dense", "speed-up inference") == "1.0×"


def test_ties_share_the_mark():
    rows = golden_rows()
    rows = pd.concat([rows, rows[rows["projector"] == "one"].assign(projector="twin")])
    ours = ReportContext(study="golden", data="synthetic", resamples=20)
    text = markdown(*score_tables(rows, ours), ours)
    assert cell(text, "one", "toy testA") == cell(text, "twin", "toy testA") == "**50.0** (**50.0**)"


def test_small_real_data_ranks_nothing(made_up, tmp_path):
    out = write(made_up, tmp_path, data="real")
    text = (out / "main.md").read_text()
    assert "too small to rank anything: 288 expressions" in text
    assert "Bold" not in text and "**" not in text and "\\textbf" not in (out / "main.tex").read_text()


def test_latex_is_well_formed(tables):
    text = (tables / "main.tex").read_text()
    for rule in ("\\toprule", "\\bottomrule", "\\begin{table*}", "\\resizebox"):
        assert text.count(rule) == 1
    groups = len(set(re.findall(r"^\| \*(.+?)\* \|", (tables / "main.md").read_text(), re.M)))
    # one below the head and one between groups, of booktabs alone
    assert groups > 1 and text.count("\\midrule") == groups and "\\cline" not in text
    depth = 0
    for sign in re.findall(r"(?<!\\)[{}]", text):
        depth += 1 if sign == "{" else -1
        assert depth >= 0
    assert depth == 0
    body = text[text.index("\\midrule") : text.index("\\bottomrule")]
    rows = [line for line in body.splitlines() if line.endswith("\\\\")]
    columns = len(re.search(r"\\begin\{tabular\}\{(\w+)\}", text).group(1))
    assert len(rows) == 7 and {line.count("&") + 1 for line in rows} == {columns}
    assert "no\\_position" in text and "coin\\_flip" in text and "\\%" in text
    assert all(ord(c) < 128 for c in text)


def test_learning_rates_and_tokens_inside_the_language_model_are_told(made_up, tmp_path):
    value = json.loads(made_up["efficiency"][0].read_text())
    value["parameters"][0] |= {"layer_tokens": 171.0, "step_budgets": 4}
    head = {k: value["parameters"][0][k] for k in ("projector", "variant", "budget")}
    (tmp_path / "efficiency.json").write_text(json.dumps(value))
    row = ".".join(head.values())
    context = ReportContext.from_study(made_up["config"], tuning=(0.33, 1, 3), effort="full")
    tables_stage(
        made_up["scores"],
        [tmp_path / "efficiency.json"],
        made_up["prepared"],
        tmp_path / "t",
        context,
        {row: 9e-4},
    )
    main = read_csv(tmp_path / "t" / "main.csv").set_index(["projector", "variant", "budget"])
    ours = main.loc[tuple(head.values())]
    assert set(ours["learning_rate"]) == {9e-4} and set(ours["layer_tokens"]) == {171.0}
    assert main["learning_rate"].notna().sum() == len(ours)
    text = (tmp_path / "t" / "main.md").read_text()
    assert "0.33, 1, 3 times the recipe's" in text and "(quick)" not in text
    label = head["projector"] if head["variant"] == "base" else f"{head['projector']} ({head['variant']})"
    assert cell(text, label, "learning rate searched") == "0.0009"
    assert cell(text, label, "tokens mean [p5, p95]").endswith(", 171.0 over layers")
    latex = (tmp_path / "t" / "main.tex").read_text()
    assert "learns at 4 token counts in each step" in " ".join(latex.split())
    assert f"{label} drops visual tokens inside the language model when it answers" in text
    assert text.count("token counts in each step") == 1 and f"- {label} learns at 4 token counts" in text


def test_the_title_says_quick(tables):
    assert (tables / "main.md").read_text().startswith("# Projectors at equal budgets (quick)\n")
