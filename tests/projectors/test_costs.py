"""Operations and parameters against counts worked out on paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from projector_cases import make_features
from torch import nn

from harness.discovery import find_projectors, load_projector
from harness.flops import count_flops
from harness.parameters import count_parameters, layer_table, parameter_table, write_parameter_report
from harness.projector import Interface, Projector

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "parameters.csv"
D, H, N, K = 32, 24, 144, 36  # vision and language width, patches and tokens of the counted call


def mlp(tokens, inputs=D):
    return 2 * tokens * (inputs * H + H * H)


def attention(queries, keys, width):
    """Projections of query, key, value and output, scores and weighted sums."""
    return 4 * queries * width**2 + 4 * keys * width**2 + 4 * queries * keys * width


def regnet_stage(cells, depth=3):
    squeeze = 2 * 2 * D * (D // 4)
    return depth * (2 * 2 * cells * D * D + 2 * 9 * cells * D + squeeze)


OPERATIONS = {
    "linear": 2 * N * D * H,
    "mlp": mlp(N),
    "avg_pool": mlp(K),
    "random_keep": mlp(K),
    "downsample": mlp(K),
    "m3": mlp(N),
    "pixel_shuffle": mlp(K, 4 * D),
    "pixel_shuffle_linear": 2 * K * 4 * D * H,
    "qwen_resampler": 2 * N * D * H + attention(K, N, H),
    "mqt": attention(K, N, D) + 2 * K * D * H,
    "honeybee_resampler": 2 * N * D * D
    + 6 * (attention(K, N + K, D) + 3 * 2 * K * D * 4 * D)
    + 2 * K * D * H,
    "c_abstractor": regnet_stage(N) + regnet_stage(K) + mlp(K),
    "ldpv2": mlp(N) + 2 * 9 * K * H,
    "token_packer": 2 * K * D * D + 2 * 2 * N * (4 * D * D + D * D) + K * attention(1, 4, D) + mlp(K),
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_counted_operations_are_the_analytic_ones(name):
    budget = None if OPERATIONS[name] in (mlp(N), 2 * N * D * H) and name != "m3" else K
    projector = load_projector(name)(Interface(D, H, (12, 12), budget, level_count=4)).eval()
    assert count_flops(projector, make_features(counts=(2,))) == OPERATIONS[name]


def test_the_counter_sees_attention_in_eval_mode_without_gradients():
    layer = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.zeros(1, 5, 16)
    with torch.no_grad():
        assert count_flops(layer, x, x, x, need_weights=False) == 4 * 2 * 5 * 16**2 + 4 * 5 * 5 * 16


# Millions at a 24x24 grid of width 1024, from the released code's layers.
RELEASED = {
    ("pixel_shuffle", 4096, 144): 33.6,
    ("pixel_shuffle", 4096, 64): 54.6,
    ("pixel_shuffle", 4096, 36): 83.9,
    ("pixel_shuffle", 896, 64): 9.1,
    ("pixel_shuffle", 896, 36): 15.5,
    ("pixel_shuffle_linear", 4096, 144): 16.8,
    ("pixel_shuffle_linear", 4096, 64): 37.7,
    ("pixel_shuffle_linear", 4096, 36): 67.1,
    ("qwen_resampler", 4096, 256): 72.4,
    ("qwen_resampler", 4096, 64): 71.6,
    ("qwen_resampler", 896, 256): 4.4,
    ("qwen_resampler", 896, 64): 4.2,
}


@pytest.mark.parametrize("case", RELEASED, ids=str)
def test_parameters_at_other_budgets_are_the_released_ones(case):
    name, language, budget = case
    with torch.device("meta"):
        projector = load_projector(name)(Interface(1024, language, (24, 24), budget))
    assert round(sum(p.numel() for p in projector.parameters()) / 1e6, 1) == RELEASED[case]


# To the parameter, by hand: sums over layers of inputs x outputs + biases, norms and embeddings.
EXACT = {
    "mlp": (1024 * 4096 + 4096) + (4096 * 4096 + 4096),
    "mqt": 256 * 1024 + 4 * (1024**2 + 1024) + 3 * 2 * 1024 + 1024 * 4096,
    "ldpv2": 1024 * 4096 + 4096 + 4096**2 + 4096 + 9 * 4096 + 4096,
    "honeybee_resampler": 64 * 1024
    + (1024**2 + 1024)
    + 6 * (4 * (1024**2 + 1024) + 3 * 2048 + 2 * (1024 * 4096 + 4096) + 2 * 4096 + 4096 * 1024 + 1024)
    + (1024 * 4096 + 4096),
    "token_packer": 1024**2
    + 2 * ((4096 * 1024 + 1024) + (1024**2 + 1024))
    + 3 * 2048
    + 4 * (1024**2 + 1024)
    + (1024 * 4096 + 4096)
    + (4096**2 + 4096),
}


@pytest.mark.parametrize("name", EXACT)
def test_parameters_are_exact(name):
    assert count_parameters(name)["1024x4096"] == EXACT[name]


def test_released_counts_all_agree(tmp_path):
    report = write_parameter_report(PUBLISHED, tmp_path)
    assert not (report["agrees"] == "no").any()
    assert (report["agrees"] == "yes").sum() == len(pd.read_csv(PUBLISHED))
    assert (tmp_path / "parameters.md").read_text().count("\n- **") == report["projector"].nunique()


def test_a_wrong_released_count_is_reported(tmp_path):
    published = tmp_path / "published.csv"
    published.write_text("projector,widths,millions,note\nmlp,1024x4096,20.99,\nmlp,1024x896,1.6-1.8,\n")
    report = write_parameter_report(published, tmp_path)
    agrees = report[report["projector"] == "mlp"].set_index("widths")["agrees"]
    assert agrees["1024x4096"] == "no" and agrees["1024x896"] == "yes" and agrees["1024x2048"] == ""


def test_the_table_holds_every_projector_and_the_parts_add_up():
    table = parameter_table().set_index("projector")
    assert set(table.index) == {
        name for name in find_projectors() if issubclass(load_projector(name), Projector)
    }
    for name in ("q_former", "d_abstractor"):
        assert layer_table(name, 1024, 896)["parameters"].sum() == table.loc[name, "1024x896"]
    assert count_parameters("oracle") == {}
