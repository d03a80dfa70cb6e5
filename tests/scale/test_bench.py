"""`svp bench cache` and `svp bench prefix` print what they promise, and the two sides agree."""

import json
from collections import Counter

import pytest
from torch.utils.flop_counter import FlopCounterMode

import harness.measuring.bench
from harness.cli import app
from harness.features.encoding import ImageEncoder

ROWS = "rows: [mlp, {name: avg_pool, budget: 9}]\nset: {training.images_per_step: 4}\n"


@pytest.fixture(scope="module")
def bed(tmp_path_factory):
    folder = tmp_path_factory.mktemp("bench")
    (folder / "study.yaml").write_text(ROWS)
    return folder


def printed(bed, capsys, name):
    app(["bench", name, str(bed / "study.yaml"), "--folder", str(bed / "results"), "--json"])
    return json.loads(capsys.readouterr().out)


@pytest.fixture
def each_side(monkeypatch):
    """Calls ``look(work)`` on both sides of a benchmark before they are timed: a clock proves nothing."""
    timed = harness.measuring.bench.median_seconds

    def of(look):
        seen = []

        def first_looked_at(works, *given):
            seen.append({name: look(work) for name, work in works.items()})
            return timed(works, *given)

        monkeypatch.setattr(harness.measuring.bench, "median_seconds", first_looked_at)
        return seen

    return of


def test_cached_features_are_the_same_bits_and_nothing_is_encoded(bed, capsys, each_side, monkeypatch):
    encoded, encode = [], ImageEncoder.__call__
    monkeypatch.setattr(
        ImageEncoder, "__call__", lambda self, x: encoded.append(self.item) or encode(self, x)
    )

    def encoded_by(work):
        encoded.clear()
        work()
        return Counter(encoded)

    seen = each_side(encoded_by)
    found = printed(bed, capsys, "cache")
    assert found["max_abs_diff"] == 0.0
    assert seen == [{"cached": {}, "encoded": {"patches": 4, "sam": 4}}]
    assert found["speedup"] == pytest.approx(found["encoded_ms"] / found["cached_ms"])
    assert found["row"].startswith("mlp.")


def test_one_prefix_for_all_expressions_gives_their_own_states_for_less(bed, capsys, each_side):
    def operations(work):
        with FlopCounterMode(display=False) as counted:
            work()
        return counted.get_total_flops()

    seen = each_side(operations)
    found = printed(bed, capsys, "prefix")
    assert found["visual_tokens"] == 144 and found["expressions"] == 7
    assert found["max_abs_diff"] < 1e-4
    short = found["rows"]["avg_pool.base.9.s0"]
    assert short["visual_tokens"] == 9 and short["max_abs_diff"] < 1e-4
    long_, short_ = (side["own"] / side["shared"] for side in seen)
    assert long_ > 3 and long_ > short_ > 1  # 144 tokens read once in place of seven times


def test_commands_of_projector_packages_stand_beside_them(capsys):
    app(["bench", "--help"])
    listed = capsys.readouterr().out
    assert all(name in listed for name in ("cache", "prefix", "projector", "superpixels"))
