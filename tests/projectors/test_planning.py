"""How budgets become token grids, and what is refused."""

from __future__ import annotations

import pytest
import torch

from baselines._layers import head_count, sincos_table, space_to_depth, token_count, token_grid, token_stride


@pytest.mark.parametrize(
    ("grid", "budget", "expected"),
    [
        ((24, 24), 144, (12, 12)),
        ((24, 24), 64, (8, 8)),
        ((24, 24), None, (12, 12)),
        ((12, 12), 9, (3, 3)),
        ((7, 7), None, (4, 4)),
        ((24, 48), 32, (4, 8)),
        ((7, 5), 12, (4, 3)),
        ((1, 6), None, (1, 3)),
    ],
)
def test_token_grids_keep_the_aspect(grid, budget, expected):
    assert token_grid("x", grid, budget) == expected


@pytest.mark.parametrize("budget", [0, -4, 12, 150, 625])
def test_a_square_grid_admits_squares_up_to_its_size(budget):
    with pytest.raises(ValueError, match=f"x cannot give {budget} tokens here; admissible: "):
        token_grid("x", (24, 24), budget)


def test_a_refusal_names_the_nearest_budgets_in_order():
    with pytest.raises(ValueError, match="admissible: 64, 81, 100, 121, 144, 169$"):
        token_grid("x", (24, 24), 110)


def test_strides_are_common_divisors():
    assert [token_stride("x", (24, 24), budget) for budget in (None, 144, 64, 36, 16)] == [2, 2, 3, 4, 6]
    assert token_stride("x", (6, 9), 6) == 3
    with pytest.raises(ValueError, match="admissible: 6, 54"):
        token_stride("x", (6, 9), 13)
    with pytest.raises(ValueError, match="needs sides that 2 divides, not 7x6"):
        token_stride("x", (7, 6), None)


def test_counts_have_bounds():
    assert token_count("x", None, default=64, most=9) == 9
    with pytest.raises(ValueError, match="cannot give 10 tokens"):
        token_count("x", 10, default=4, most=9)
    with pytest.raises(ValueError, match="needs 2 patches at least"):
        token_count("x", None, default=4, least=2, most=1)


@pytest.mark.parametrize(("width", "head_width", "heads"), [(1024, 64, 16), (4096, 128, 32), (96, 128, 1)])
def test_heads_follow_their_published_width(width, head_width, heads):
    assert head_count(width, head_width) == heads
    assert 200 % head_count(200, 64) == 0


def test_positions_tell_every_cell_apart():
    table = sincos_table((5, 9), 16)
    distances = torch.cdist(table, table) + torch.eye(45) * 9
    assert distances.min() > 0.1


def test_blocks_that_do_not_tile_are_refused():
    with pytest.raises(ValueError, match="2x2 patches do not tile a 3x4 grid"):
        space_to_depth(torch.zeros(1, 12, 4), (3, 4), 2)
