"""What cannot be run is refused by name, before anything runs."""

import json
from pathlib import Path

import pytest
from config_files import ROOT, default, merged

from harness.config import ConfigError
from harness.config.resolve import load_study, read_study, resolve_study
from harness.planning.plan import Plan


def test_a_file_whose_own_name_cannot_be_a_rows_needs_a_label(tmp_path):
    file, text = tmp_path / "mine.py", (ROOT / "baselines" / "avg_pool.py").read_text()
    file.write_text(text.replace('name = "avg_pool"', 'name = "my pool"'))
    with pytest.raises(ConfigError, match="'my pool' cannot be a name; .*'label'"):
        default(rows=["mlp", str(file)])
    assert default(rows=["mlp", {"name": str(file), "label": "my+pool"}])[1].id == "my+pool.base.auto.s0"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sees": [1]}, "did you mean 'seeds'"),
        (
            {"set": {"training.stage1_step": 1}},
            "training: unknown key 'stage1_step'; did you mean 'stage1_steps'",
        ),
        ({"set": {"trainin.stage1_steps": 1}}, "did you mean 'training'"),
        ({"set": {"data.train_image": 1}}, "unknown key 'train_image'; did you mean 'train_images'"),
        (
            {"splits": ["synthref/vall"]},
            "splits: the data have no 'synthref/vall'; did you mean 'synthref/val'",
        ),
        ({"reference_row": "mpl"}, "reference_row: no row is called 'mpl'; did you mean 'mlp'"),
        ({"rows": ["nowhere.mine:Mine"]}, "module nowhere.mine cannot be found; name its file"),
        ({"superpixels": "slick"}, "did you mean 'slic'"),
        ({"set": {"superpixels": {"source": "slic"}}}, "are set as 'superpixels.KEY: value'"),
        ({"rows": ["mpl"]}, "did you mean 'mlp'"),
        ({"rows": [{"name": "svp_slic", "config": {"sspe_block": 1}}]}, "did you mean 'sspe_blocks'"),
        ({"set": {"superpixels.source": "slik"}}, "did you mean 'slic'"),
        ({"set": {"superpixels.options.pred_iou_tresh": 0.5}}, "sam: .*did you mean 'pred_iou_thresh'"),
        ({"set": {"superpixels.uses_sam": False}}, "takes its masks from a SAM; set uses_sam: true"),
        ({"rows": [{"name": "mlp", "budgt": 3}]}, "did you mean 'budget'"),
        ({"rows": [{"name": "svp", "config": {"layrs": 3}}]}, "svp"),
        ({"rows": ["mlp", {"name": "text_blind"}]}, "'of' must name one of mlp"),
        ({"effort": "fast"}, "effort"),
        ({"seeds": []}, "seeds"),
        ({"rows": ["mlp", {"name": "avg_pool", "budget": "1/5"}]}, "1/5 of 144 patches is no whole number"),
        ({"rows": ["mlp", {"name": "avg_pool", "budget": "0.25"}]}, "budget"),
        ({"rows": ["mlp", {"name": "avg_pool", "budget": 0}]}, "budget"),
        ({"tuning": {"factor": [1, 3]}}, "did you mean 'factors'"),
        ({"tuning": {"factors": [1]}}, "tuning.factors"),
        (
            {
                "effort": "full",
                "tuning": {"factors": [1, 3]},
                "rows": [{"name": "mlp", "set": {"training.learning_rate": 0.1}}],
            },
            "`tuning` finds the learning rate",
        ),
        ({"set": {"training.stage1_steps": "many"}}, "stage1_steps"),
        ({"rows": []}, "rows: no row is named; list one at least"),
        ({"rows": "mlp"}, r"rows: 'mlp' is no list; write \[mlp\]"),
        ({"rows": ["oracle"]}, "oracle is not trained; add a row that is"),
        ({"rows": [{"name": "mlp", "budget": []}]}, "budget: an empty list makes no row"),
        ({"rows": [{"name": "mlp", "budget": 0.25}]}, "budget: 0.25 is no budget; give a whole number"),
        ({"rows": [{"name": "mlp", "budget": "36"}]}, "budget: '36' is no budget; .* such as 1/4"),
        ({"rows": [{"name": "mlp", "full_budgets": [36, True]}]}, "full_budgets: True is no budget"),
        ({"seeds": [0, 0]}, "seeds: 0 stands twice"),
        ({"seeds": 3}, r"seeds: 3 is no list; write \[3\]"),
        ({"bootstrap_resamples": 0}, "bootstrap_resamples: .*greater than or equal to 1"),
        ({"set": {"training.images_per_step": 0}}, "images_per_step: .*greater than or equal to 1"),
        ({"set": {"training.stage1_steps": -1}}, "stage1_steps: .*greater than or equal to 0"),
        ({"set": {"training.learning_rate": -1.0}}, "learning_rate: .*greater than 0"),
        ({"study": "my study"}, "study: 'my study' cannot be a name; take letters, digits"),
        ({"study": ""}, "study: '' cannot be a name"),
        ({"study": "shared"}, "study: 'shared' is a folder of results that is no study's; take another"),
        ({"study": "../x"}, "study: '../x' cannot be a name"),
        ({"rows": [{"name": "mlp", "label": "ours (new)"}]}, r"label: 'ours \(new\)' cannot be a name"),
        ({"rows": [{"name": "mlp", "label": "v1.5"}]}, "label: 'v1.5' cannot be a name"),
        ({"rows": [{"name": "mlp", "variant": "{a}"}]}, r"variant: '\{a\}' cannot be a name"),
        ({"rows": [{"name": "mlp", "variant": "a/b"}]}, "variant: 'a/b' cannot be a name"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(changes, message):
    with pytest.raises(ConfigError, match=message):
        default(**changes)


@pytest.mark.parametrize("text", ["rows: [mlp]\nseeds: [1]\nrows: [svp]", "rows: [{name: mlp, name: svp}]"])
def test_a_key_that_stands_twice_is_refused(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    key = "rows" if "seeds" in text else "name"
    with pytest.raises(ConfigError, match=rf"mine.yaml: key '{key}' stands twice, again in line \d"):
        read_study(tmp_path / "mine.yaml", ROOT)


def test_a_relative_data_root_is_that_of_the_working_directory(monkeypatch, tmp_path):
    raw = {**merged(ROOT / "config/real_sample.yaml"), "data_root": "photos"}
    monkeypatch.chdir(tmp_path)
    for root, found in {"photos": tmp_path / "photos", "~/photos": Path.home() / "photos"}.items():
        runs = resolve_study(load_study({**raw, "data_root": root}), ROOT)
        assert {run.data.root for run in runs} == {str(found)}
    monkeypatch.setenv("SOME_ROOT", "photos")
    runs = resolve_study(load_study({**raw, "data_root": "${SOME_ROOT}"}), ROOT)
    assert {run.data.root for run in runs} == {str(tmp_path / "photos")}


@pytest.mark.parametrize("root", ["${SOME_ROOT}", "$SOME_ROOT", "${SOME_ROOT}/photos"])
def test_an_empty_variable_is_an_unset_one(monkeypatch, root):
    raw = {**merged(ROOT / "config/real_sample.yaml"), "data_root": root}
    for empty in (False, True):
        monkeypatch.setenv("SOME_ROOT", "") if empty else monkeypatch.delenv("SOME_ROOT", raising=False)
        plan = Plan.from_raw(raw, ROOT)
        assert {run.data.root for run in plan.runs.values()} == {root}
    if "{" in root:
        with pytest.raises(ConfigError, match="needs the environment variable SOME_ROOT"):
            plan.check_inputs()


def test_what_a_projector_refuses_is_found_before_it_is_trained():
    pytest.importorskip("torch")
    from harness.running.refusals import refusals

    rows = [
        "mlp",
        {"name": "avg_pool", "budget": 500},
        {"name": "svp", "variant": "word", "config": {"sspe": "nonee"}},
        {"name": "svp", "variant": "heads", "config": {"ssa_heads": 7}},
        {"name": "svp", "variant": "share", "set": {"superpixels.options.pred_iou_thresh": "high"}},
    ]
    found = refusals(Plan.from_raw({**merged(), "rows": rows}, ROOT))
    assert set(found) == {"avg_pool.base.500", "svp.word.auto", "svp.heads.auto", "svp.share.auto"}
    assert "500" in found["avg_pool.base.500"] and "sspe: " in found["svp.word.auto"]
    assert "ssa_heads 7" in found["svp.heads.auto"] and "pred_iou_thresh: " in found["svp.share.auto"]


def test_a_width_is_read_from_the_weights_where_they_are(tmp_path):
    pytest.importorskip("torch")
    from harness.running.refusals import refusals, unasked_rows

    rows = [{"name": "svp", "config": {"ssa_heads": 7}}]
    changes = {"models.vision.source": str(tmp_path), "models.start": None}
    raw = {**merged(), "rows": rows, "set": {**changes, "models.vision.kind": "clip"}}
    plan = Plan.from_raw(raw, ROOT)
    assert refusals(plan) == {} and unasked_rows(plan) == ["svp.base.auto"]  # not known yet
    for width, refused in ((98, False), (96, True)):
        config = {"model_type": "clip", "vision_config": {"hidden_size": width, "num_attention_heads": 2}}
        (tmp_path / "config.json").write_text(json.dumps(config))
        plan = Plan.from_raw(raw, ROOT)
        assert bool(refusals(plan)) == refused and not unasked_rows(plan)


def test_the_width_of_a_language_model_inside_a_llava_is_read(tmp_path):
    pytest.importorskip("torch")
    from harness.running.refusals import unasked_rows

    text = {"model_type": "llama", "hidden_size": 48, "num_attention_heads": 4}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    raw = {**merged(), "set": {"models.language.source": str(tmp_path), "models.start": None}}
    assert not unasked_rows(Plan.from_raw(raw, ROOT))
    # One that its own class refuses is not known either; what loads it says what is wrong with it.
    text["num_attention_heads"] = 7
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llava", "text_config": text}))
    assert unasked_rows(Plan.from_raw(raw, ROOT))


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ("size: llava7b\n", "no part is made for 'llava7b'.*paper, small, tiny"),
        ("size: papr\n", "did you mean 'paper'"),
        ("", "'tiny' has thresholds for a tiny SAM, and this one is vit_h; set size: paper or small"),
    ],
)
def test_models_of_ones_own_take_no_thresholds_of_the_tiny_ones(tmp_path, part, message):
    paper = (ROOT / "config/parts/models/paper.yaml").read_text()
    assert "size: paper\n" in paper
    (tmp_path / "mine.yaml").write_text(paper.replace("size: paper\n", part))
    raw = {**merged(ROOT / "config/paper.yaml"), "models": str(tmp_path / "mine.yaml")}
    with pytest.raises(ConfigError, match=message):
        resolve_study(load_study(raw), ROOT)


def test_real_data_are_missed_by_name(tmp_path):
    raw = {**merged(ROOT / "config" / "real_sample.yaml"), "data_root": str(tmp_path)}
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"refcoco/refs\(unc\).p is not there"):
        Plan.from_raw(raw, ROOT).check_inputs()
