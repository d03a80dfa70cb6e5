"""`svp bench cache` and `svp bench prefix` print what they promise, and the two sides agree."""

import json

import pytest

from harness.cli import app

ROWS = "rows: [mlp, {name: avg_pool, budget: 9}]\nset: {training.images_per_step: 4}\n"


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "study.yaml").write_text(ROWS)
    return folder


def printed(bed, capsys, name):
    app(["bench", name, str(bed / "study.yaml"), "--folder", str(bed / "results"), "--json"])
    return json.loads(capsys.readouterr().out)


def test_cached_features_are_the_same_bits_and_faster(bed, capsys):
    found = printed(bed, capsys, "cache")
    assert found["max_abs_diff"] == 0.0
    assert found["speedup"] > 1
    assert found["row"].startswith("mlp.")


def test_one_prefix_for_all_expressions_gives_their_own_states_and_is_faster(bed, capsys):
    found = printed(bed, capsys, "prefix")
    assert found["visual_tokens"] == 144 and found["expressions"] == 7
    assert found["max_abs_diff"] < 1e-4
    assert found["speedup"] > 1.3  # measured about 4; a busy machine gets slack
    short = found["rows"]["avg_pool.base.9.s0"]
    assert short["visual_tokens"] == 9 and short["max_abs_diff"] < 1e-4


def test_commands_of_projector_packages_stand_beside_them(capsys):
    app(["bench", "--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("cache", "prefix", "projector", "superpixels"))
