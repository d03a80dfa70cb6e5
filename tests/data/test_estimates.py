"""What a study is said to take of a GPU and of a disk, against sums done by hand."""

import pytest
from config_files import ROOT, planned

from harness.planning.estimates import feature_bytes, memory_estimate, parameters_of_name, weight_bytes

PAPER = ROOT / "config" / "paper.yaml"
IMAGES = 25_000
# 576 patches of width 1,024 and a SAM embedding of 64 x 64 x 256, two bytes a value
PATCHES, SAM = 1_179_648, 2_097_152


def paper(*rows, **changes):
    limits = changes.pop("budget_gb", {})
    return planned(PAPER, rows=list(rows), set={"models.features.budget_gb": limits}, **changes)


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("llava-hf/llava-1.5-7b-hf", 7e9),
        ("Qwen/Qwen2.5-0.5B-Instruct", 0.5e9),
        ("lmsys/vicuna-13b-v1.5", 13e9),
        ("facebook/dinov2-large", 304e6),
        ("someone/model", None),
    ],
)
def test_a_models_name_tells_its_size(name, count):
    assert parameters_of_name(name, {"large": 304e6}) == count


def test_memory_of_a_7b_model_in_bfloat16_is_between_its_weights_and_a_big_card():
    changes = {
        "models.start": None, "models.language.source": "x/llama-7b",
        "models.vision.source": "facebook/dinov2-large",
        "models.sam.kind": "vit_h", "training.dtype": "bfloat16",
    }  # fmt: skip
    need = memory_estimate(next(iter(planned(set=changes).runs.values())))
    assert 14e9 < need < 40e9


def test_features_that_rows_share_are_counted_once():
    assert feature_bytes(paper("mlp")) == IMAGES * (PATCHES + SAM)
    assert feature_bytes(paper("mlp", {"name": "avg_pool", "budget": [144, 36]})) == IMAGES * (PATCHES + SAM)


def test_what_a_projector_reads_beside_the_patches_takes_its_room():
    levels = {"name": "token_packer", "budget": 144}
    assert feature_bytes(paper("mlp", levels)) == IMAGES * (PATCHES + SAM + 4 * PATCHES)
    merged = {"name": "tome", "budget": [144, 36]}  # under a hook of its own for each budget
    assert feature_bytes(paper("mlp", merged)) == IMAGES * (PATCHES + SAM + (144 + 36) * 1024 * 2)


def test_a_limit_on_an_array_bounds_it():
    assert feature_bytes(paper("mlp", budget_gb={"sam": 10})) == IMAGES * PATCHES + 10e9


def test_each_trained_run_leaves_two_files_of_what_it_learns():
    one = 2 * 4 * 0.05 * 7e9
    assert weight_bytes(paper("mlp", {"name": "text_blind", "of": "mlp"})) == pytest.approx(one)
    assert weight_bytes(paper("mlp", seeds=[0, 1])) == pytest.approx(2 * one)
    assert weight_bytes(paper("mlp", tuning={"factors": [0.5, 1, 2]})) == pytest.approx(4 * one)


def test_embeddings_of_a_small_language_model_are_a_larger_share():
    # 151,936 x 896 embeddings of Qwen2.5-0.5B, which its head shares, in float32
    small = planned(ROOT / "config" / "small.yaml", rows=["mlp"])
    assert weight_bytes(small) == pytest.approx(2 * 4 * 151_936 * 896, rel=0.15)


def test_a_tiny_recipe_beside_large_models_changes_no_estimate():
    seeded = paper("mlp")
    both = planned(PAPER, rows=["mlp"], set={"models.features.budget_gb": {}, "models.pretrain.seed": 1})
    assert feature_bytes(both) == feature_bytes(seeded)


def test_tiny_models_take_next_to_nothing():
    assert feature_bytes(planned()) == weight_bytes(planned()) == 0
