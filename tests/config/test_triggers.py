"""What a job's result hangs on: each value and each step before it, so that nothing stale is taken."""

from pathlib import Path

import pytest

from harness.config.recipe import ProtocolConfig
from harness.config.resolve import read_study
from harness.planning import triggers
from harness.planning.plan import Plan
from harness.running.doctor import examine

ROOT = Path(__file__).parents[2]
# Another value of every field, and whether training reads it: prompts and answers are learnt.
PROTOCOL = {
    "name": ("glamm-3sent", False),
    "sample_seed": (3, False),
    "decode": ("generate", False),
    "max_new_tokens": (7, False),
    "threshold": (0.5, False),
    "preamble": ("See here.", True),
    "prompt": ("{image} where is {expression} ?", True),
    "answer": ("it is [SEG]", True),
    "lower_case": (False, True),
    "end_of_answer": (True, True),
    "seg_state": ("before", True),
}


def planned(rows=("svp",), **deltas):
    raw = read_study(ROOT / "config/studies/smoke.yaml", ROOT)
    merged = raw.get("set", {}) | deltas
    return Plan.from_raw({**raw, "rows": list(rows), "reference_row": rows[0], "set": merged}, ROOT)


def test_every_field_of_the_protocol_is_known_here():
    assert set(PROTOCOL) == set(ProtocolConfig.model_fields)


@pytest.mark.parametrize("field", PROTOCOL)
def test_what_a_protocol_teaches_trains_again_and_what_it_asks_predicts_again(field):
    value, taught = PROTOCOL[field]
    base, changed = planned(), planned(**{f"protocol.{field}": value})
    runs = [next(iter(plan.runs.values())) for plan in (base, changed)]
    assert getattr(runs[0].protocol, field) != value  # else nothing is changed here
    trained = {triggers.train_trigger(plan, run, 1) for plan, run in zip((base, changed), runs, strict=True)}
    assert (len(trained) == 2) is taught
    asked = {triggers.predict_trigger(plan, run) for plan, run in zip((base, changed), runs, strict=True)}
    assert len(asked) == 2


def identities(plan):
    """What tells shards of features and superpixels from others."""
    keys = plan.keys(next(iter(plan.runs.values())))
    features = {item: triggers.feature_identity(plan, keys.feature(item)) for item in ("patches", "sam")}
    return features | {"superpixels": triggers.superpixel_identity(plan, keys.superpixels)}


def changed(before, after):
    return {name for name, value in before.items() if after[name] != value}


@pytest.mark.parametrize(
    ("module", "made_anew"),
    [
        ("harness.data.stage", {"patches", "sam", "superpixels"}),
        ("harness.data.synthetic", {"patches", "sam", "superpixels"}),
        ("harness.pretraining.models", {"patches", "sam", "superpixels"}),
        ("harness.features.cache", {"patches", "sam", "superpixels"}),
        ("harness.superpixels.stage", {"superpixels"}),
        ("harness.training.loop", set()),
    ],
)
def test_other_code_before_a_job_leaves_it_no_shard(monkeypatch, module, made_anew):
    before = identities(planned())
    known = triggers.code_hash
    monkeypatch.setattr(
        triggers, "code_hash", lambda *names: ["edited"] if module in names else known(*names)
    )
    assert changed(before, identities(planned())) == made_anew


@pytest.mark.parametrize(("part", "made_anew"), [("vision", {"patches"}), ("sam", {"sam", "superpixels"})])
def test_weights_replaced_where_they_lie_leave_no_shard(tmp_path, part, made_anew):
    weights = tmp_path / "weights"
    weights.mkdir()
    for name in ("config.json", "model.safetensors"):
        (weights / name).write_text("first")
    deltas = {f"models.{part}.source": str(weights), "models.start": None}
    before = identities(planned(**deltas))
    assert changed(before, identities(planned(**deltas))) == set()
    (weights / "model.safetensors").write_text("another")
    assert changed(before, identities(planned(**deltas))) == made_anew


@pytest.mark.parametrize("part", ["vision", "language", "sam"])
def test_weights_replaced_where_they_lie_are_never_gone_on_with(tmp_path, part):
    weights = tmp_path / "weights"
    weights.mkdir()
    (weights / "model.safetensors").write_text("first")
    deltas = {f"models.{part}.source": str(weights), "models.start": None}

    def checkpoint():
        plan = planned(**deltas)
        return triggers.checkpoint_trigger(plan, plan.trained[0])

    first = checkpoint()
    assert checkpoint() == first
    (weights / "model.safetensors").write_text("another")
    assert checkpoint() != first


def test_data_replaced_where_they_lie_leave_no_shard(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    plan = planned()
    summary = plan.prepared_dir(plan.trained[0]) / "summary.json"
    summary.parent.mkdir(parents=True)
    summary.write_text("first")
    before = identities(planned())
    assert changed(before, identities(planned())) == set()
    summary.write_text("another")
    assert changed(before, identities(planned())) == {"patches", "sam", "superpixels"}


def test_a_checkpoint_of_the_superpixels_own_leaves_no_shard_and_is_looked_for(tmp_path, monkeypatch):
    weights = tmp_path / "sam2"
    options = {"checkpoint": str(weights)}
    row = {"name": "svp", "set": {"superpixels.source": "sam_transformers", "superpixels.options": options}}
    raw = read_study(ROOT / "config/studies/smoke.yaml", ROOT)

    def plan():
        return Plan.from_raw({**raw, "rows": [row], "reference_row": "svp"}, ROOT)

    def told():
        (found,) = [f for f in examine(plan()) if f.check.startswith("superpixels: ")]
        return found.status

    assert told() == "missing"
    options["checkpoint"] = "${SAMS}/sam2"
    assert told() == "missing"  # the variable is not set
    monkeypatch.setenv("SAMS", str(tmp_path))
    weights.mkdir()
    (weights / "config.json").write_text("{}")
    (weights / "model.bin").write_text("no safetensors")
    assert told() == "missing"
    for name in ("config.json", "model.safetensors"):
        (weights / name).write_text("first")
    assert told() == "ok"
    before, run = identities(plan()), plan().trained[0]
    kept = triggers.checkpoint_trigger(plan(), run)
    assert changed(before, identities(plan())) == set() and triggers.checkpoint_trigger(plan(), run) == kept
    (weights / "model.safetensors").write_text("another")
    assert changed(before, identities(plan())) == {"superpixels"}
    assert triggers.checkpoint_trigger(plan(), run) != kept
    key = plan().keys(next(iter(plan().runs.values()))).superpixels
    assert weights / "model.safetensors" in plan().superpixel_inputs(key)


def test_masks_hang_on_the_embedding_that_they_are_decoded_from():
    for rows, names in ((("svp",), {"superpixels"}), (("svp_slic",), set())):
        for setting in ({"models.features.compute": "bfloat16"}, {"models.features.dtype": "bfloat16"}):
            base, other = (
                plan.keys(next(iter(plan.runs.values())))
                for plan in (planned(rows), planned(rows, **setting))
            )
            assert ({"superpixels"} if base.superpixels != other.superpixels else set()) == names
