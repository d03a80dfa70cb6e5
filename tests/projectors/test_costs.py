"""Operations and parameters against counts worked out on paper."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
import torch
from projector_cases import HEADS, encode, make_features
from shipped import shipped_projectors
from torch import nn

from baselines.ldp import squeezed_width
from harness.measuring.clocks import count_flops
from harness.plugins.discovery import find_projectors, load_projector
from harness.plugins.parameters import count_parameters, layer_table, parameter_table, write_parameter_report
from harness.projector import Interface, Projector

PUBLISHED = Path(__file__).parents[2] / "results" / "published" / "parameters.csv"
D, H, N, K = 32, 24, 144, 36  # vision and language width, patches and tokens of the counted call


def mlp(tokens, inputs=D):
    return 2 * tokens * (inputs * H + H * H)


def attention(queries, keys, width):
    """Projections of query, key, value and output, scores and weighted sums."""
    return 4 * queries * width**2 + 4 * keys * width**2 + 4 * queries * keys * width


def feed_forward(tokens, ratio=4):
    return 2 * tokens * 2 * ratio * D**2


def regnet_stage(cells, depth=3):
    squeeze = 2 * 2 * D * (D // 4)
    return depth * (2 * 2 * cells * D * D + 2 * 9 * cells * D + squeeze)


def mobilenet_block(cells):
    """Of cells after the stride: depth-wise 3x3, squeeze to 8 channels and excitation, 1x1."""
    return 2 * 9 * cells * H + 2 * 2 * H * 8 + 2 * cells * H * H


def deformable(heads=8, points=4):
    """Offsets and weights from the queries, values and output; sampling between cells is not counted."""
    return 2 * K * D * heads * points * 3 + 2 * N * D**2 + 2 * K * D**2


def by_likeness(kept, candidates, width):
    """Scalar products of every pair."""
    return 2 * kept * candidates * width


def sspe(blocks=3, each=4):
    """Queries confer, look at the grid, and go through an MLP twice as wide.

    Until masks tell them apart, in the first block's attention, superpixels share one set of queries.
    """
    total = 2 * N * D**2  # positions
    for block in range(blocks):
        alike, own = each * (S if block else 1), each * S
        total += 2 * 4 * alike * D**2 + 4 * alike * each * D
        total += 2 * alike * D**2 + 2 * 2 * N * D**2 + 2 * alike * N * D  # queries, keys and values, scores
        total += 2 * own * N * D + 2 * own * D**2 + feed_forward(own, 2)
    return total + 2 * S * each * D * (D + H)  # to the attention's width and to the language model's


S = 2  # superpixels
SVP = 2 * S * N * D + sspe() + attention(S, N, D) + feed_forward(S) + mlp(S)
CONTEXTUAL = 6  # VisionZip: 10 of 64
OTHERS = N - (K - CONTEXTUAL) - CONTEXTUAL
OPERATIONS = {
    "linear": 2 * N * D * H,
    "mlp": mlp(N),
    "avg_pool": mlp(K),
    "random_keep": mlp(K),
    "downsample": mlp(K),
    "m3": mlp(N),
    "pixel_shuffle": mlp(K, 4 * D),
    "pixel_shuffle_linear": 2 * K * 4 * D * H,
    "qwen_resampler": 2 * N * D * H + attention(K, N, H) + 2 * K * H * H,
    "mqt": attention(K, N, D) + 2 * K * D * H,
    "honeybee_resampler": 2 * N * D * D
    + 6 * (attention(K, N + K, D) + 3 * 2 * K * D * 4 * D)
    + 2 * K * D * H,
    "q_former": 12 * (attention(K, K, D) + feed_forward(K)) + 6 * attention(K, N, D) + 2 * K * D * H,
    "c_abstractor": regnet_stage(N) + regnet_stage(K) + mlp(K),
    "d_abstractor": 6 * (attention(K, K, D) + deformable() + feed_forward(K, 1)) + 2 * K * D * H,
    "ldp": mlp(N) + mobilenet_block(N) + mobilenet_block(K),
    "ldpv2": mlp(N) + 2 * 9 * K * H,
    "token_packer": 2 * K * D * D + 2 * 2 * N * (4 * D * D + D * D) + K * attention(1, 4, D) + mlp(K),
    # One token is what was dropped; the neighbours' sum is taken by places.
    "prumerge": by_likeness(K - 1, N, D) + mlp(K),
    "prumerge_plus": by_likeness(K - 1, N, D) + mlp(K),
    # Keys are averaged over heads; means are products with who belongs to whom.
    "visionzip": by_likeness(OTHERS, CONTEXTUAL, D // HEADS) + 2 * CONTEXTUAL * OTHERS * D + mlp(K),
    # Patches of other clusters are masked out. Distances between patches, from which the clusters come, are
    # one operation that torch's counter does not know.
    "setok": (2 * attention(N, N, D) + feed_forward(N))
    + 2 * K * N * D
    + (2 * attention(K, K, D) + feed_forward(K))
    + 2 * K * D * H,
    # Merging and dropping happen inside the encoder and the language model, and are counted there.
    "tome": mlp(K),
    "fastv": mlp(N),
    "grid_regions": mlp(K) + 2 * K * (4 * D + D * H),
    "global_token": mlp(1),
    "svp": SVP,
    "svp_slic": SVP,
}
UNBUDGETED = {"linear", "mlp", "global_token", "svp", "svp_slic"}


def test_every_trained_projector_has_its_operations_worked_out():
    trained = {name for name, info in shipped_projectors().items() if info.acts_on == "training"}
    assert set(OPERATIONS) == trained


@pytest.mark.parametrize("name", OPERATIONS)
def test_counted_operations_are_the_analytic_ones(name):
    budget = None if name in UNBUDGETED else K
    projector = load_projector(name)(Interface(D, H, (12, 12), budget, level_count=4)).eval()
    image = encode(name, make_features(counts=(S,)), budget)
    assert count_flops(lambda: projector(image)) == OPERATIONS[name]


def test_the_counter_sees_attention_in_eval_mode_without_gradients():
    layer = nn.MultiheadAttention(16, 2, batch_first=True).eval()
    x = torch.zeros(1, 5, 16)
    with torch.no_grad():
        counted = count_flops(lambda: layer(x, x, x, need_weights=False))
    assert counted == 4 * 2 * 5 * 16**2 + 4 * 5 * 5 * 16


# Millions at a 24x24 grid of width 1024, from the released code's layers; Qwen's without what closes it.
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
        projector_class = load_projector(name)
        options = {"output_projection": False} if name == "qwen_resampler" else {}
        interface = Interface(1024, language, (24, 24), budget)
        projector = projector_class(interface, projector_class.Config(**options))
    assert round(sum(p.numel() for p in projector.parameters()) / 1e6, 1) == RELEASED[case]


# To the parameter, by hand: sums over layers of inputs x outputs + biases, norms and embeddings.
EXACT = {
    "mlp": (1024 * 4096 + 4096) + (4096 * 4096 + 4096),
    "qwen_resampler": 256 * 4096 + 1024 * 4096 + 2 * 2 * 4096 + 4 * (4096**2 + 4096) + (2 * 4096 + 4096**2),
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


def test_ldps_gate_is_as_wide_as_torchvisions():
    divisible = pytest.importorskip("torchvision.models._utils")._make_divisible
    widths = range(8, 5000, 4)
    assert [squeezed_width(width) for width in widths] == [divisible(width // 4, 8) for width in widths]
    for width, squeezed in ((72, 24), (896, 224)):
        with torch.device("meta"):
            projector = load_projector("ldp")(Interface(D, width, (12, 12)))
        shapes = {tuple(p.shape) for p in projector.blocks.parameters()}
        assert {(squeezed, width, 1, 1), (width, squeezed, 1, 1)} <= shapes


def test_released_counts_all_agree(tmp_path):
    report = write_parameter_report(PUBLISHED, tmp_path)
    assert not (report["agrees"] == "no").any()
    assert (report["agrees"] == "yes").sum() == len(pd.read_csv(PUBLISHED))
    assert (tmp_path / "parameters.md").read_text().count("\n- **") == report["projector"].nunique()
    for name in ("parameters.csv", "parameters.md"):  # the committed ones are those of this code
        assert (tmp_path / name).read_text() == (PUBLISHED.parents[1] / "reference" / name).read_text()


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
