"""Every file under config/ can be run, and what cannot be run is refused by name."""

from pathlib import Path

import pytest
import yaml
from shipped import is_shipped, shipped_projectors

from harness.cli import app
from harness.config import BLOCKS, ConfigError, RunConfig, StudyConfig
from harness.plan import Plan
from harness.study import load_study, read_study, resolve_study

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = sorted(filter(is_shipped, (ROOT / "config").glob("*.yaml")))
STUDIES = sorted(filter(is_shipped, (ROOT / "config" / "studies").glob("*.yaml")))


def merged(*paths: Path) -> dict:
    """Several ``--configfile`` on top of the default, as Snakemake merges them."""
    raw: dict = {}
    for path in (ROOT / "config" / "default.yaml", *paths):
        for key, value in yaml.safe_load(path.read_text()).items():
            both = isinstance(value, dict) and isinstance(raw.get(key), dict)
            raw[key] = {**raw[key], **value} if both else value
    return raw


def default(**changes) -> list[RunConfig]:
    return resolve_study(load_study({**merged(), **changes}), ROOT)


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_config_goes_with_every_study(config, study):
    plan = Plan.from_raw(merged(config, study), ROOT)
    assert plan.runs
    assert plan.study.reference_row in {run.projector for run in plan.trained}


@pytest.mark.parametrize("path", [*CONFIGS, *STUDIES], ids=lambda p: p.stem)
def test_reading_a_study_merges_as_snakemake_does(path):
    assert read_study(path, ROOT) == merged(path)


def test_a_study_without_a_name_is_called_by_its_file(tmp_path):
    for name, text, found in (("mine", "rows: [mlp]", "mine"), ("mine", "study: yours", "yours")):
        (tmp_path / f"{name}.yaml").write_text(text)
        assert read_study(tmp_path / f"{name}.yaml", ROOT)["study"] == found
    refused = {"my study": "cannot be a name", "reference": "take another name", "2026": "with a digit"}
    for name, why in refused.items():
        (tmp_path / f"{name}.yaml").write_text("rows: [mlp]")
        with pytest.raises(ConfigError, match=rf"{name}.yaml has no 'study: NAME', and .*{why}"):
            read_study(tmp_path / f"{name}.yaml", ROOT)


def test_several_files_are_merged_in_their_order(tmp_path, monkeypatch, capsys):
    files = [ROOT / "config/paper.yaml", ROOT / "config/studies/main.yaml"]
    assert read_study(files, ROOT) == merged(*files)
    (tmp_path / "mine.yaml").write_text("rows: [mlp]")
    assert read_study([files[0], tmp_path / "mine.yaml"], ROOT)["study"] == "mine"
    monkeypatch.chdir(ROOT)
    app(["plan", "config/paper.yaml", str(tmp_path / "mine.yaml")])
    assert capsys.readouterr().out.splitlines() == ["results/paper-mine", "  mlp.base.auto.s0"]
    app(["plan"])
    assert capsys.readouterr().out.startswith("results/default\n")


@pytest.mark.parametrize("name", ["paper", "small"])
def test_the_large_studies_keep_their_folders(name):
    assert (
        Plan.from_raw(read_study(ROOT / f"config/{name}.yaml", ROOT), ROOT).study_dir.name
        == f"{name}-default"
    )


def test_the_default_study_holds_the_agreed_rows():
    rows = [(run.projector, run.budget, run.acts_on) for run in default()]
    assert rows == [
        ("svp", None, "training"),
        ("mlp", None, "training"),
        ("avg_pool", 36, "training"),
        ("avg_pool", 9, "training"),
        ("c_abstractor", 36, "training"),
        ("svp_slic", None, "training"),
        ("random_keep", 36, "training"),
        ("text_blind", None, "run"),
        ("image_blind", None, "run"),
        ("image_blind", None, "run"),
        ("oracle", None, "superpixels"),
    ]


def test_slic_control_differs_from_svp_in_its_superpixels_alone():
    runs = {run.projector: run for run in default()}
    svp, slic = runs["svp"], runs["svp_slic"]
    assert svp.superpixels.source == "sam" and slic.superpixels.source == "slic"
    names = ("projector", "source", "kind", "superpixels")
    assert svp.model_dump(exclude=set(names)) == slic.model_dump(exclude=set(names))


def test_deltas_reach_the_rows_they_name():
    rows = ["mlp", {"name": "avg_pool", "budget": 9, "set": {"training.learning_rate": 0.5}}]
    runs = default(rows=rows, set={"training.warmup_steps": 3})
    assert [run.training.warmup_steps for run in runs] == [3, 3]
    assert runs[1].training.learning_rate == 0.5 != runs[0].training.learning_rate


def test_quick_shortens_the_schedule_and_a_study_may_say_otherwise():
    quick, full = default(effort="quick")[0], default(effort="full")[0]
    assert quick.training.stage1_steps < full.training.stage1_steps
    own = default(effort="quick", set={"training.stage1_steps": 7})[0]
    assert own.training.stage1_steps == 7


def test_budgets_may_be_shares_of_the_patches_and_lists():
    rows = ["mlp", {"name": "avg_pool", "budget": ["1/4", 4], "full_budgets": [None, "1/9"]}]
    budgets = {effort: [r.budget for r in default(rows=rows, effort=effort)] for effort in ("quick", "full")}
    assert budgets == {"quick": [None, 36, 4], "full": [None, 36, 4, None, 16]}
    larger = {"models.vision.image_size": 192}
    assert [r.budget for r in default(rows=rows, set=larger)] == [None, 144, 4]


def test_quick_leaves_out_full_seeds_and_searches_nothing(tmp_path):
    changes = {"seeds": [4, 6], "full_seeds": [5, 4], "tuning": {"factors": [1, 3]}, "rows": ["mlp"]}
    quick, full = (Plan.from_raw({**merged(), **changes, "effort": e}, ROOT) for e in ("quick", "full"))
    assert [run.seed for run in quick.runs.values()] == [4, 6] and not quick.trials
    assert [run.seed for run in full.runs.values()] == [4, 6, 5] and full.trials
    asked = {**changes, "tuning": {"factors": [1, 3], "at_quick": True}, "effort": "quick"}
    assert [len(trials) for trials in Plan.from_raw({**merged(), **asked}, ROOT).trials.values()] == [2]
    full.save(tmp_path / "config.json")  # and read again by every job
    assert [run.seed for run in Plan.load(tmp_path / "config.json").runs.values()] == [4, 6, 5]


def test_the_main_study_holds_every_projector():
    for effort in ("quick", "full"):
        raw = {**merged(ROOT / "config/studies/main.yaml"), "effort": effort}
        runs = resolve_study(load_study(raw), ROOT)
        # the control of token orders has a study of its own
        assert {run.projector for run in runs} == set(shipped_projectors()) - {"reordered"}
        assert len({run.budget for run in runs} - {None}) == (2 if effort == "quick" else 3)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_every_row_of_the_main_study_can_be_built(config):
    pytest.importorskip("torch")
    from harness.discovery import load_projector
    from harness.projector import Interface

    raw = {**merged(config, ROOT / "config/studies/main.yaml"), "effort": "full", "seeds": [0]}
    for run in resolve_study(load_study(raw), ROOT):
        if run.acts_on == "training":
            projector, vision = load_projector(run.source), run.models.vision
            interface = Interface(1024, 4096, vision.grid, run.budget, len(vision.levels))
            assert projector.skip(interface, projector.Config(**run.config)) == (False, ""), run.id


def test_a_projector_of_a_lone_file_stands_in_the_table_under_its_label(tmp_path):
    file = tmp_path / "mine.py"
    file.write_text(
        (ROOT / "baselines" / "avg_pool.py").read_text().replace('name = "avg_pool"', 'name = "mine"')
    )
    runs = default(rows=["mlp", {"name": str(file), "label": "ours", "budget": 9}])
    assert runs[1].id == "ours.base.9.s0"


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


def test_a_study_without_the_reference_row_says_nothing_of_speed_ups():
    assert [run.projector for run in default(rows=["avg_pool"])] == ["avg_pool"]


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
    from harness.refusals import refusals

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


@pytest.mark.parametrize("study", STUDIES, ids=lambda p: p.stem)
@pytest.mark.parametrize("config", CONFIGS, ids=lambda p: p.stem)
def test_no_row_that_we_ship_is_refused(config, study):
    pytest.importorskip("torch")
    from harness.refusals import refusals

    assert refusals(Plan.from_raw(merged(config, study), ROOT)) == {}


def test_a_width_is_read_from_the_weights_where_they_are(tmp_path):
    pytest.importorskip("torch")
    from harness.refusals import refusals

    rows = [{"name": "svp", "config": {"ssa_heads": 7}}]
    changes = {"models.vision.source": str(tmp_path), "models.start": None}
    raw = {**merged(), "rows": rows, "set": {**changes, "models.vision.kind": "clip"}}
    assert refusals(Plan.from_raw(raw, ROOT)) == {}  # not known yet
    for width, refused in ((98, False), (96, True)):
        (tmp_path / "config.json").write_text(f'{{"vision_config": {{"hidden_size": {width}}}}}')
        assert bool(refusals(Plan.from_raw(raw, ROOT))) == refused


def test_a_word_in_place_of_keys_names_a_part_within_the_part():
    clip = {"name": "mlp", "variant": "clip", "set": {"models.vision": "clip"}}
    runs = default(rows=["mlp", clip], set={"models.vision.layer": -2})
    assert runs[0].models.vision.kind == "dinov2" and runs[0].models.vision.layer == -2
    assert runs[1].models.vision.kind == "clip" and runs[1].models.vision.layer == -1  # whole, not a delta
    assert runs[1].models.language == runs[0].models.language
    with pytest.raises(ConfigError, match="parts/models/vision; did you mean 'clip'"):
        default(rows=[{**clip, "set": {"models.vision": "clib"}}])


def test_a_control_finds_the_variant_that_it_acts_on():
    trained = ["svp", {"name": "svp", "variant": "bare", "config": {"sspe": "none"}}]
    acting = [
        {"name": "reordered", "of": "svp"},
        {"name": "reordered", "variant": "same", "of": "svp.base"},
        {"name": "reordered", "variant": "other", "of": "svp.bare"},
    ]
    plan = Plan.from_raw({**merged(), "rows": [*trained, *acting], "seeds": [0, 1], "effort": "full"}, ROOT)
    bases = {run.id: plan.base_run(run).id for run in plan.runs.values() if run.acts_on == "run"}
    assert bases == {
        f"reordered.{variant}.auto.s{seed}": f"svp.{base}.auto.s{seed}"
        for variant, base in (("base", "base"), ("same", "base"), ("other", "bare"))
        for seed in (0, 1)
    }
    with pytest.raises(ConfigError, match=r"must name one of svp, svp\.bare"):
        default(rows=[*trained, {"name": "reordered", "of": "svp.bar"}])


TWO = [{"name": "avg_pool", "budget": [36, 9]}, "mlp"]


def test_a_control_says_which_budget_it_acts_on():
    rows = [*TWO, {"name": "text_blind", "of": "avg_pool.base.9"}]
    plan = Plan.from_raw({**merged(), "rows": rows}, ROOT)
    assert plan.base_run(plan.runs["text_blind.base.auto.s0"]).id == "avg_pool.base.9.s0"
    assert (
        plan.run_named("avg_pool.base.9").id
        == plan.run_named("avg_pool.base.9.s0").id
        == "avg_pool.base.9.s0"
    )
    assert plan.run_named("mlp").id == plan.run_named("mlp.base").id == "mlp.base.auto.s0"
    with pytest.raises(
        ConfigError, match=r"'avg_pool' may mean avg_pool\.base\.36, avg_pool\.base\.9; name one"
    ):
        plan.run_named("avg_pool")
    with pytest.raises(ConfigError, match="no row 'mpl'; did you mean 'mlp'"):
        plan.run_named("mpl")


@pytest.mark.parametrize(
    ("control", "message"),
    [
        (
            {"of": "avg_pool"},
            r"'of: avg_pool' may mean avg_pool\.base\.36, avg_pool\.base\.9; name one of them",
        ),
        ({"of": "avg_pool.base.4"}, r"must name one of avg_pool\.base\.36, avg_pool\.base\.9, mlp$"),
        ({"of": "image_blind"}, r"must name one of avg_pool\.base\.36, avg_pool\.base\.9, mlp$"),
        ({"of": "mlp", "budget": 9}, "'text_blind' has the budget of the run .* leave out its own"),
    ],
)
def test_a_control_of_no_one_row_is_refused_with_the_choices(control, message):
    rows = [*TWO, {"name": "image_blind", "of": "mlp"}, {"name": "text_blind", **control}]
    with pytest.raises(ConfigError, match=message):
        default(rows=rows)


def test_models_of_one_domain_stay_when_the_data_change():
    def keys(**changes) -> tuple:
        plan = Plan.from_raw({**merged(), **changes}, ROOT)
        run = plan.runs["svp.base.auto.s0"]
        models = [plan.keys(run).model(part) for part in ("vision", "language", "sam")]
        return plan.keys(run).data, [plan.keys(run).pool, *models]

    data, models = keys()
    other_data, other_models = keys(set={"data.domain": "blobs"})
    assert other_data != data and not set(other_models) & set(models)
    kept_data, kept_models = keys(set={"data.domain": "blobs", "models.pretrain.pool_domain": "shapes"})
    assert kept_data == other_data and kept_models == models


ABLATIONS = [p for p in STUDIES if p.stem not in ("smoke", "main")]


@pytest.mark.parametrize("path", ABLATIONS, ids=lambda p: p.stem)
def test_an_ablation_shares_what_it_does_not_vary(path):
    """Its first SVP row or its whole counterpart stands on the default study's data, models and features."""

    def artefacts(plan: Plan) -> set[str]:
        runs = plan.runs.values()
        keys = {plan.keys(run).model(part) for run in runs for part in ("vision", "language", "sam")}
        keys |= {
            plan.keys(run).feature(item) for run in plan.trained for item in plan.keys(run).feature_items
        }
        return (
            keys | {plan.keys(run).data for run in runs} | {plan.keys(run).superpixels or "" for run in runs}
        )

    base, plan = Plan.from_raw(merged(), ROOT), Plan.from_raw(merged(path), ROOT)
    assert plan.study_dir.name == path.stem and plan.study.results == base.study.results
    shared = artefacts(plan) & artefacts(base)
    assert {key.split("-")[0] for key in shared} >= {"vision", "language", "sam"}
    if path.stem != "cross_domain":
        assert base.keys(base.runs["svp.base.auto.s0"]).data in shared
        assert plan.runs["svp.base.auto.s0"].model_dump(exclude={"study"}) == base.runs[
            "svp.base.auto.s0"
        ].model_dump(exclude={"study"})


def test_make_runs_every_ablation():
    line = next(x for x in (ROOT / "Makefile").read_text().splitlines() if x.startswith("STUDIES ?="))
    assert sorted(line.split()[2:]) == sorted(p.stem for p in ABLATIONS)


def test_readme_names_every_key():
    text = (ROOT / "config" / "README.md").read_text()
    assert [key for key in StudyConfig.model_fields if f"`{key}`" not in text] == []
    assert [block for block in BLOCKS if f"parts/{block}" not in text] == []


def test_plan_survives_the_file(tmp_path):
    plan = Plan.from_raw(merged(), ROOT)
    plan.save(tmp_path / "config.json")
    assert Plan.load(tmp_path / "config.json").as_json() == plan.as_json()


def test_keys_follow_what_an_artefact_depends_on():
    def keys(**changes) -> tuple:
        plan = Plan.from_raw({**merged(), **changes}, ROOT)
        run = plan.runs["svp.base.auto.s0"]
        sam = plan.keys(run).model("sam")
        return plan.keys(run).data, sam, plan.keys(run).superpixels, plan.keys(run).feature("patches")

    base = keys()
    assert keys(set={"training.learning_rate": 1.0}) == base
    changed = keys(set={"models.pretrain.sam_steps": 1})
    assert [a == b for a, b in zip(base, changed, strict=True)] == [True, False, False, True]
    changed = keys(set={"data.val_images": 3})
    assert [a == b for a, b in zip(base, changed, strict=True)] == [False, True, False, False]
    changed = keys(set={"data.seed": 3})
    assert [a == b for a, b in zip(base, changed, strict=True)] == [False, False, False, False]


def test_an_encoder_hook_has_features_of_its_own():
    rows = ["mlp", {"name": "tome", "budget": 36}, {"name": "tome", "budget": 9}]
    rows += [{"name": "tome", "budget": 9, "variant": "plain", "config": {"proportional": False}}]
    plan = Plan.from_raw({**merged(), "rows": rows}, ROOT)
    mlp, *hooked = plan.runs.values()
    assert "encoder_tokens" not in plan.keys(mlp).feature_items
    assert len({plan.keys(run).feature("patches") for run in plan.runs.values()}) == 1
    keys = [plan.keys(run).feature("encoder_tokens") for run in hooked]
    assert len(set(keys)) == 3
    assert all(plan.owner(key) is run for key, run in zip(keys, hooked, strict=True))
    seeds = Plan.from_raw({**merged(), "rows": rows[1:2], "seeds": [0, 1]}, ROOT)
    assert len({seeds.keys(run).feature("encoder_tokens") for run in seeds.runs.values()}) == 1


def test_real_data_are_missed_by_name(tmp_path):
    raw = {**merged(ROOT / "config" / "real_sample.yaml"), "data_root": str(tmp_path)}
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match=r"refcoco/refs\(unc\).p is not there"):
        Plan.from_raw(raw, ROOT).check_inputs()


@pytest.mark.parametrize("config", ["paper", "default"])
def test_the_main_study_holds_every_one_of_its_budgets_that_a_design_admits(config):
    pytest.importorskip("torch")
    from harness.discovery import load_projector
    from harness.projector import Interface

    raw = merged(ROOT / "config" / f"{config}.yaml", ROOT / "config/studies/main.yaml")
    runs = resolve_study(load_study({**raw, "effort": "full", "seeds": [0]}), ROOT)
    grid, levels = runs[0].models.vision.grid, len(runs[0].models.vision.levels)
    held = {(run.source, run.budget) for run in runs}
    missing = []
    for name in {run.source for run in runs if run.acts_on == "training"}:
        projector = load_projector(name)
        for share in (4, 9, 16):
            budget = grid[0] * grid[1] // share
            interface = Interface(1024, 4096, grid, budget, levels)
            if (name, budget) not in held and not projector.skip(interface, projector.Config())[0]:
                missing.append(f"{name}: 1/{share}")
    assert not missing
