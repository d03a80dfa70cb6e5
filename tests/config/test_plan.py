"""A resolved study: which run a control acts on, which artefacts runs share."""

import pytest
from config_files import ROOT, default, merged, planned

from harness.config import ConfigError
from harness.planning.plan import Plan


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


def test_further_seeds_are_not_timed():
    timed = planned(rows=["mlp", "svp", "oracle"], seeds=[3, 4], effort="full").timed
    assert [run.id for run in timed] == ["mlp.base.auto.s3", "svp.base.auto.s3"]


def test_overlays_draw_rows_of_the_same_scenes():
    rows = ["mlp", {"name": "mlp", "variant": "blobs", "set": {"data.domain": "blobs"}}, "svp"]
    drawn = planned(rows=rows, seeds=[0, 1], effort="full").overlay_runs
    assert [run.id for run in drawn] == ["mlp.base.auto.s0", "svp.base.auto.s0"]


GIVEN = {f"models.{part}.source": part for part in ("vision", "language", "sam")} | {"models.start": None}
LAST = {"last_cls_attention", "last_keys"}
SELECTED = {"patches", "cls_attention", "keys"}
VISION = SELECTED | LAST | {"levels"}


@pytest.mark.parametrize(
    ("setting", "items"),
    [
        ({"models.vision.levels": [1, 2]}, {"levels"}),
        ({"models.vision.image_size": 48}, VISION),
        ({"models.vision.source": "another"}, VISION),
        ({"models.vision.kind": "clip"}, VISION),
        ({"models.sam.source": "another"}, {"sam"}),
        ({"models.features.budget_gb": {"keys": 1}}, {"keys"}),
        ({"models.features.dtype": "bfloat16"}, VISION | {"sam"}),
        ({"models.features.compute": "bfloat16"}, VISION | {"sam"}),
        ({"data.seed": 5}, VISION | {"sam"}),
        ({"training.images_per_step": 2, "models.language.source": "another"}, set()),
    ],
    ids=lambda value: ",".join(value) if isinstance(value, dict) else "",
)
def test_features_are_others_where_a_field_can_change_them(setting, items):
    assert changed_features(setting) == items


def test_another_layer_changes_what_is_taken_from_it_and_nothing_of_the_last():
    changed = changed_features({"models.vision.layer": -2})
    assert changed >= SELECTED and not changed & (LAST | {"sam"})


def changed_features(setting):
    """Of which items the features have another key."""
    keys = []
    for values in (GIVEN, GIVEN | setting):
        plan = planned(rows=["mlp"], set=values)
        keys.append(plan.keys(plan.runs["mlp.base.auto.s0"]))
    return {item for item in VISION | {"sam"} if keys[0].feature(item) != keys[1].feature(item)}


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
