"""Every file under config/ can be run, and says what it is meant to say."""

import pandas as pd
import pytest
from config_files import CONFIGS, ROOT, STUDIES, default, merged
from shipped import shipped_projectors

from harness.cli import app
from harness.config import BLOCKS, ConfigError, StudyConfig
from harness.config.resolve import load_study, read_study, resolve_study, row_names
from harness.planning.plan import Plan

# What is pretrained from another seed is ours to pretrain: test_real_sizes.py has the refusal.
TOGETHER = [
    pytest.param(config, study, id=f"{config.stem}-{study.stem}")
    for config in CONFIGS
    for study in STUDIES
    if (config.stem, study.stem) not in {("paper", "pretraining"), ("small", "pretraining")}
]


@pytest.mark.parametrize(("config", "study"), TOGETHER)
def test_every_config_goes_with_every_study(config, study):
    plan = Plan.from_raw(merged(config, study), ROOT)
    assert plan.runs
    assert plan.study.reference_row in {name for run in plan.trained for name in row_names(run)}


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
    from harness.plugins.discovery import load_projector
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


def test_a_study_without_the_reference_row_says_nothing_of_speed_ups():
    assert [run.projector for run in default(rows=["avg_pool"])] == ["avg_pool"]


@pytest.mark.parametrize(("config", "study"), TOGETHER)
def test_no_row_that_we_ship_is_refused(config, study):
    pytest.importorskip("torch")
    from harness.running.refusals import refusals

    assert refusals(Plan.from_raw(merged(config, study), ROOT)) == {}


def test_a_word_in_place_of_keys_names_a_part_within_the_part():
    clip = {"name": "mlp", "variant": "clip", "set": {"models.vision": "clip"}}
    runs = default(rows=["mlp", clip], set={"models.vision.layer": -2})
    assert runs[0].models.vision.kind == "dinov2" and runs[0].models.vision.layer == -2
    assert runs[1].models.vision.kind == "clip" and runs[1].models.vision.layer == -1  # whole, not a delta
    assert runs[1].models.language == runs[0].models.language
    with pytest.raises(ConfigError, match="parts/models/vision; did you mean 'clip'"):
        default(rows=[{**clip, "set": {"models.vision": "clib"}}])


SNAPSHOTS = sorted(p.parents[1] for p in (ROOT / "results/reference").glob("*/tables/overall.csv"))


@pytest.mark.parametrize("snapshot", SNAPSHOTS, ids=lambda p: p.name)
def test_a_snapshot_holds_the_rows_that_its_study_asks_for(snapshot):
    path = ROOT / "config/default.yaml"
    if snapshot.name != "default":
        path = ROOT / "config/studies" / f"{snapshot.name}.yaml"
    table = pd.read_csv(snapshot / "tables" / "overall.csv", dtype=str)
    rows = set(table[["projector", "variant", "budget"]].agg(".".join, axis=1))
    assert rows == {run.row for run in Plan.from_raw(merged(path), ROOT).runs.values()}


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


@pytest.mark.parametrize("config", ["paper", "default"])
def test_the_main_study_holds_every_one_of_its_budgets_that_a_design_admits(config):
    pytest.importorskip("torch")
    from harness.plugins.discovery import load_projector
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
