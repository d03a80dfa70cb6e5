"""Figures carry the tables' numbers, look the same every time, and say what their data is."""

import json

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from made_up_study import make_study
from matplotlib.text import Text
from PIL import Image

from harness.reporting.context import ReportContext, read_csv
from harness.reporting.figures import FIGURE_NAMES, figures_stage, image_tokens
from harness.reporting.labels import Label, place_labels
from harness.reporting.score_charts import per_split
from harness.reporting.style import PALETTE, house_style, looks, save
from harness.reporting.tables import tables_stage
from harness.reporting.token_charts import tokens_vs_giou
from harness.reporting.training_charts import loss_curves, read_log, run_row, stage_times


@pytest.fixture(scope="module")
def tables(made_up, tmp_path_factory):
    out = tmp_path_factory.mktemp("tables")
    context = ReportContext.from_study(made_up["config"], resamples=50)
    tables_stage(made_up["scores"], made_up["efficiency"], made_up["prepared"], out, context)
    return out


def test_tokens_of_an_image_are_the_mean_over_its_expressions_of_all_seeds(tmp_path):
    rows = {("words", "base", "auto"): (0.5, None)}
    study = make_study(tmp_path, images=2, seeds=(0, 1), rows=rows, splits=[("toy", "val")])
    for path, counts in zip(study["scores"], ([4, 4, 10, 7, 7, 7], [2, 7]), strict=True):
        frame = pd.read_parquet(path).sort_values("sent_id")
        frame = frame if len(counts) == len(frame) else frame.iloc[[0, 5]]
        frame.assign(visual_tokens=counts).to_parquet(path)
    objects = pd.read_parquet(study["prepared"] / "annotations.parquet")["image_id"].value_counts()
    found = image_tokens(study["scores"], study["prepared"]).set_index("image_id")
    assert found["tokens"].to_dict() == {0: 5.0, 1: 7.0}  # (4 + 4 + 10 + 2) / 4, not the mean of 6 and 2
    assert found["objects"].to_dict() == objects.to_dict()


def test_stage_writes_every_figure(made_up, tables, tmp_path):
    prepared = {p.stem: made_up["prepared"] for p in made_up["scores"]}
    written = figures_stage(tables, made_up["scores"], made_up["logs"], prepared, tmp_path)
    assert {p.name for p in written} == {f"{n}.{s}" for n in FIGURE_NAMES for s in ("png", "pdf")}
    for path in written:
        if path.suffix == ".png":
            pixels = np.asarray(Image.open(path).convert("L"))
            assert pixels.shape[1] > 600 and (pixels < 128).mean() > 0.002  # something is drawn
        else:
            assert path.read_bytes().startswith(b"%PDF")
    assert not plt.get_fignums()


def test_points_stand_where_the_table_says(tables):
    overall = read_csv(tables / "overall.csv")
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    with house_style():
        figure = tokens_vs_giou(overall, looks(overall["projector"]), context)
    axes = figure.axes[0]
    assert axes.get_xscale() == "log"
    drawn = {tuple(np.round(line.get_xydata()[0], 6)) for line in axes.lines if len(line.get_xydata()) == 1}
    assert drawn == {tuple(np.round(v, 6)) for v in overall[["tokens_mean", "giou"]].to_numpy()}
    hollow = [line for line in axes.lines if line.get_markerfacecolor() == "white"]
    control = overall[overall["projector"] == "coin_flip"].iloc[0]
    assert [line.get_xydata()[0][1] for line in hollow] == [pytest.approx(control["giou"])]
    assert "synthetic scenes; effort: quick" in figure.get_supxlabel()
    plt.close(figure)


def test_wide_token_bars_are_not_cut_at_the_edge(tables):
    overall = read_csv(tables / "overall.csv")
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    few, many = overall["tokens_mean"].idxmin(), overall["tokens_mean"].idxmax()
    overall.loc[few, "tokens_p5"] = overall.loc[few, "tokens_mean"] / 4
    overall.loc[many, "tokens_p95"] = overall.loc[many, "tokens_mean"] * 4
    with house_style():
        figure = tokens_vs_giou(overall, looks(overall["projector"]), context)
    left, right = figure.axes[0].get_xlim()
    assert left < overall.loc[few, "tokens_p5"] and right > overall.loc[many, "tokens_p95"]
    plt.close(figure)


def test_rows_of_one_token_count_stand_one_under_the_other(tables):
    overall = read_csv(tables / "overall.csv").assign(tokens_mean=10.9, tokens_p5=5, tokens_p95=16)
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    overall.loc[overall["projector"] == "coin_flip", ["giou", "giou_low", "giou_high"]] = 0.01
    with house_style():
        figure = tokens_vs_giou(overall, looks(overall["projector"]), context)
    axes = figure.axes[0]
    names = [text.get_text() for text in axes.get_yticklabels()]
    shown = [(names[round(line.get_ydata()[0])], line.get_xdata()[0]) for line in marks(axes)]
    ours = overall[overall["projector"] != "coin_flip"]
    told = zip(ours["projector"], ours["variant"], ours["giou"], strict=True)
    wanted = [(p if v == "base" else f"{p} ({v})", pytest.approx(g)) for p, v, g in told]
    assert shown == wanted  # in the table's order, the control left to the edge
    assert "◀ 1.0 %" in {text.get_text() for text in axes.texts}
    assert axes.get_xlabel().endswith("at 10.9 visual tokens")
    plt.close(figure)


def many(table, count):
    """The table's first projector under ``count`` names, each a little better than the last."""
    one = table[table["projector"] == table["projector"].iloc[0]]
    parts = [one.assign(projector=f"p{k}", giou=one["giou"] + k / 1000) for k in range(count)]
    return pd.concat(parts, ignore_index=True)


def test_many_rows_have_a_line_each_where_the_table_says(tables):
    scores = many(read_csv(tables / "scores.csv"), 20)
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    with house_style():
        figure = per_split(scores, looks(scores["projector"]), context)
        figure.canvas.draw()
    datasets = list(dict.fromkeys(scores["dataset"]))
    assert [axes.get_title(loc="left") for axes in figure.axes] == datasets
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    for axes, dataset in zip(figure.axes, datasets, strict=True):
        drawn = sorted((round(y), round(x, 6)) for (x, y), *_ in (line.get_xydata() for line in marks(axes)))
        part = scores[scores["dataset"] == dataset]
        told = zip(part["projector"], part["giou"], strict=True)
        budget = f" @{part['budget'].iloc[0]}" if part["budget"].iloc[0] != "auto" else ""
        assert drawn == sorted((names.index(f"{p}{budget}"), round(g, 6)) for p, g in told)
    plt.close(figure)


def test_six_variants_are_told_apart_and_no_whisker_is_cut(tables):
    scores = read_csv(tables / "scores.csv")
    one = scores[scores["projector"] == scores["projector"].iloc[0]]
    names = ["base", "b", "c", "d", "e", "f"]
    scores = pd.concat([one.assign(variant=name) for name in names], ignore_index=True)
    scores.loc[scores["dataset"] == scores["dataset"].iloc[-1], "giou_high"] += 0.3  # in the last panel alone
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    with house_style():
        figure = per_split(scores, looks(scores["projector"]), context)
        figure.canvas.draw()
    first = figure.axes[0]
    bars = {c.get_label(): c.patches[0] for c in first.containers if hasattr(c, "patches")}
    assert len({(bar.get_facecolor(), bar.get_hatch()) for bar in bars.values()}) == len(names)
    assert all(axes.get_ylim()[1] > scores["giou_high"].max() for axes in figure.axes)
    (legend,) = figure.legends
    columns = legend._ncols
    told = [text.get_text() for text in legend.get_texts()]
    rows = -(-len(told) // columns)
    read = [told[c * rows + r] for r in range(rows) for c in range(columns)]  # six in columns of one height
    assert read == list(bars)
    plt.close(figure)


def marks(axes):
    return [line for line in axes.lines if line.get_marker() not in ("None", "|", "_", "")]


def test_a_control_far_off_is_named_at_the_edge_and_leaves_the_axis_to_the_projectors(tables):
    overall = read_csv(tables / "overall.csv")
    context = ReportContext.checked(json.loads((tables / "context.json").read_text()))
    overall.loc[overall["projector"] == "coin_flip", ["giou", "giou_low", "giou_high"]] = 0.01
    with house_style():
        figure = tokens_vs_giou(overall, looks(overall["projector"]), context)
    axes = figure.axes[0]
    ours = overall[overall["projector"] != "coin_flip"]
    assert axes.get_ylim()[0] > 0.05
    assert axes.get_ylim()[0] < ours["giou_low"].min() and axes.get_ylim()[1] > ours["giou_high"].max()
    texts = {text.get_text() for text in axes.texts}
    assert "▼ coin_flip 1.0 %" in texts and set(ours["projector"]) <= texts
    plt.close(figure)


def test_labels_of_a_crowd_do_not_cover_each_other():
    with house_style():
        figure, axes = plt.subplots(figsize=(7.2, 4.6))
        axes.set(xlim=(0, 10), ylim=(0, 1))
        labels = [Label(5.0, 0.4 + 0.01 * k, f"projector_{k}", "black") for k in range(18)]
        place_labels(axes, labels)
        figure.canvas.draw()
        renderer = figure.canvas.get_renderer()
        # Of an annotation the extent would hold its line too.
        boxes = [Text.get_window_extent(text, renderer) for text in axes.texts]
        frame = axes.get_window_extent(renderer)
    assert [text.get_text() for text in axes.texts] == [f"projector_{k}" for k in range(17, -1, -1)]
    for k, box in enumerate(boxes):
        assert frame.x0 <= box.x0 and box.x1 <= frame.x1
        assert not any(box.overlaps(other) for other in boxes[:k])
    plt.close(figure)


def test_loss_of_many_rows_has_a_panel_each(tmp_path):
    paths = []
    for k in range(14):
        path = tmp_path / f"p{k}.base.auto.s0" / "log.jsonl"
        path.parent.mkdir()
        lines = [{"stage": s, "step": n, "loss": 3.0 - s - 0.01 * k} for s in (1, 2) for n in (1, 2, 3)]
        path.write_text("\n".join(map(json.dumps, lines)))
        paths.append(path)
    names = [run_row(p)[0] for p in paths]
    figure = loss_curves(paths, looks(names), ReportContext(study="x", data="synthetic"))
    shown = [axes for axes in figure.axes if axes.axison]
    assert sorted(axes.get_title() for axes in shown) == sorted(names)
    first = next(axes for axes in shown if axes.get_title() == "p3")
    own = [line.get_xydata().tolist() for line in first.lines if line.get_color() != "#DDDDDD"]
    assert [[x for x, _ in line] for line in own] == [[1, 2, 3], [4, 5, 6]]
    assert [line[0][1] for line in own] == [pytest.approx(1.97), pytest.approx(0.97)]
    plt.close(figure)


def test_stacked_times_add_up_and_totals_stay_out(tables):
    efficiency = read_csv(tables / "efficiency.csv")
    total = efficiency[efficiency["stage"] == "vision"].assign(stage="total", median_ms=1e6)
    context = ReportContext(study="x", data="synthetic")
    figure = stage_times(pd.concat([efficiency, total]), context)
    panels = {axes.get_title(): axes for axes in figure.axes}
    assert list(panels) == ["cold, batch 1", "cold, batch 8", "cached, batch 1", "cached, batch 8"]
    for batch in (1, 8):
        one = efficiency[efficiency["batch"] == batch]
        for case, part in (("cold", one), ("cached", one[one["stage"].isin(["project", "prefill"])])):
            bars = panels[f"{case}, batch {batch}"].patches
            sums = part.groupby(["projector", "variant", "budget"])["median_ms"].sum()
            longest = max(bar.get_x() + bar.get_width() for bar in bars)
            assert longest == pytest.approx(sums.max(), rel=1e-5)
    plt.close(figure)


def test_equal_figures_equal_bytes(tmp_path):
    for name in ("a", "b"):
        with house_style():
            figure, axes = plt.subplots()
            axes.plot([1, 2], [3, 4])
            save(figure, tmp_path / name, "plot")
    for suffix in ("png", "pdf"):
        assert (tmp_path / "a" / f"plot.{suffix}").read_bytes() == (
            tmp_path / "b" / f"plot.{suffix}"
        ).read_bytes()


def test_house_style_leaves_matplotlib_alone():
    before = dict(plt.rcParams)
    with house_style():
        assert plt.rcParams["axes.spines.top"] is False
    assert dict(plt.rcParams) == before


def test_looks_are_stable_and_distinct():
    names = [f"projector{k}" for k in range(len(PALETTE))]
    first = looks(names)
    assert looks(names[::-1]) == first
    assert len({look.color for look in first.values()}) == len(PALETTE)
    alone = looks(["projector3"])["projector3"]
    assert looks(["projector3", "projector3"])["projector3"] == alone
    assert len(looks([f"p{k}" for k in range(25)])) == 25
    # SVP looks alike in every study, whoever stands beside it
    known = ["svp", "mlp", "avg_pool", "oracle"]
    together = looks(known)
    assert len({look.color for look in together.values()}) == 4
    for name in known:  # alone or beside any others
        assert {looks([name, f"p{k}", f"p{k + 1}"])[name] for k in range(40)} == {together[name]}


def test_logs_are_read_as_written(tmp_path):
    path = tmp_path / "a.b.c.36.s1" / "log.jsonl"
    path.parent.mkdir()
    lines = [{"stage": 1, "step": 0, "loss": 3.0}, {"stage": 1, "step": 10, "loss": 2.0}]
    lines += [{"stage": 1, "step": 10, "loss": 1.5}, {"stage": 1, "step": 10, "event": "resumed"}]
    path.write_text("\n".join(map(json.dumps, lines)))
    log = read_log(path)
    assert log["loss"].tolist() == [3.0, 1.5]  # the resumed run's line
    assert run_row(path) == ("a", "b.c", "36")
    path.write_text('{"stage": 1, "step"')
    with pytest.raises(ValueError, match="line 1 is not JSON"):
        read_log(path)
    path.write_text('{"stage": 1, "loss": 2}')
    with pytest.raises(ValueError, match="must hold stage, step and loss"):
        read_log(path)
