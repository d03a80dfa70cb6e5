"""What several baselines share: the two-layer MLP, coarser token grids, and refused budgets."""

from __future__ import annotations

from collections.abc import Collection
from fractions import Fraction
from math import ceil
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from harness.projector import Interface, Projector, ProjectorConfig

__all__ = [
    "Baseline",
    "KeptTokens",
    "MLPBaseline",
    "check_grid",
    "head_count",
    "mlp2x",
    "refuse_budget",
    "sincos_table",
    "space_to_depth",
    "token_count",
    "token_grid",
    "token_stride",
]


def mlp2x(inputs: int, outputs: int, activation: type[nn.Module] = nn.GELU) -> nn.Sequential:
    """Linear, activation, linear: ``[..., inputs] -> [..., outputs]`` (the projector of LLaVA-1.5)."""
    return nn.Sequential(nn.Linear(inputs, outputs), activation(), nn.Linear(outputs, outputs))


def refuse_budget(name: str, budget: int, admissible: Collection[int]) -> ValueError:
    """The error for a budget that a design cannot honour, naming the admissible ones nearest to it."""
    nearest = sorted(sorted(admissible, key=lambda count: abs(count - budget))[:6])
    return ValueError(f"{name} cannot give {budget} tokens here; admissible: {', '.join(map(str, nearest))}")


def token_grid(
    name: str, grid: tuple[int, int], budget: int | None, *, scale: float = 0.5
) -> tuple[int, int]:
    """The coarser grid that holds ``budget`` tokens and keeps the aspect of ``grid`` up to rounding.

    Args:
        name: the projector, for the message.
        grid: ``(h, w)`` of the patches; a square grid admits squares only.
        budget: tokens; ``None`` scales both sides by ``scale``, rounding halves up.
        scale: side of the default token grid relative to the patch grid.

    Raises:
        ValueError: no such grid has ``budget`` tokens; the message names the nearest that have.
    """
    height, width = grid
    if budget is None:
        return max(1, int(height * scale + 0.5)), max(1, int(width * scale + 0.5))
    by_rows = [(rows, max(1, round(rows * width / height))) for rows in range(1, height + 1)]
    by_columns = [(max(1, round(columns * height / width)), columns) for columns in range(1, width + 1)]
    grids = {rows * columns: (rows, columns) for rows, columns in by_columns + by_rows}
    if budget not in grids:
        raise refuse_budget(name, budget, grids)
    return grids[budget]


def token_count(name: str, budget: int | None, *, default: int, most: int, least: int = 1) -> int:
    """``budget``, or ``default`` (brought within the bounds) where it is ``None``.

    Raises:
        ValueError: ``budget`` lies outside ``least..most``; the message names the nearest inside.
    """
    if most < least:
        raise ValueError(f"{name} needs {least} patches at least, the grid has {most}")
    if budget is None:
        return min(max(default, least), most)
    if not least <= budget <= most:
        raise refuse_budget(name, budget, range(least, most + 1))
    return budget


def token_stride(name: str, grid: tuple[int, int], budget: int | None, *, default: int = 2) -> int:
    """Side of the square blocks of patches, one token each, that tile ``grid`` into ``budget`` blocks.

    Raises:
        ValueError: blocks of that count (by default of ``default`` x ``default`` patches) do not tile it.
    """
    counts = {
        grid[0] * grid[1] // side**2: side
        for side in range(1, min(grid) + 1)
        if grid[0] % side == 0 and grid[1] % side == 0
    }
    if budget is None:
        if default not in counts.values():
            raise ValueError(
                f"{name} needs sides that {default} divides, not {grid[0]}x{grid[1]}; "
                f"explicit budgets here: {', '.join(map(str, sorted(counts)))}"
            )
        return default
    if budget not in counts:
        raise refuse_budget(name, budget, counts)
    return counts[budget]


def space_to_depth(patches: Tensor, grid: tuple[int, int], stride: int) -> Tensor:
    """``[b, n, d] -> [b, n / stride**2, stride**2 * d]``: blocks and the patches in each in raster order.

    Raises:
        ValueError: blocks of ``stride`` x ``stride`` patches do not tile the grid.
    """
    if grid[0] % stride or grid[1] % stride:
        raise ValueError(f"blocks of {stride}x{stride} patches do not tile a {grid[0]}x{grid[1]} grid")
    blocks = patches.unflatten(1, (grid[0] // stride, stride, grid[1] // stride, stride))
    return blocks.transpose(2, 3).flatten(3).flatten(1, 2)


def check_grid(name: str, built: tuple[int, int], seen: tuple[int, int]) -> None:
    """Refuse an image on another grid than the one that fixed-size parameters were built for.

    Raises:
        ValueError: the grids differ.
    """
    if built != seen:
        raise ValueError(
            f"{name} was built for a {built[0]}x{built[1]} grid, not {seen[0]}x{seen[1]}; rebuild it"
        )


def head_count(width: int, head_width: int) -> int:
    """Attention heads: ``width / head_width`` as published, else the most that divide a narrower width."""
    heads = max(1, width // head_width)
    while width % heads:
        heads -= 1
    return heads


def sincos_table(grid: tuple[int, int], width: int) -> Tensor:
    """``[h * w, width]`` fixed 2-D sine-cosine positions: columns in the first half, rows in the second.

    The frequencies are those of MAE (arXiv 2111.06377). A width that four does not divide leaves its
    last few channels zero.
    """
    quarter = width // 4
    frequencies = 10000.0 ** -(torch.arange(quarter, dtype=torch.float64) / max(1, quarter))
    rows, columns = torch.meshgrid(
        torch.arange(grid[0], dtype=torch.float64), torch.arange(grid[1], dtype=torch.float64), indexing="ij"
    )
    table = torch.zeros(grid[0] * grid[1], width)
    for start, positions in ((0, columns), (2 * quarter, rows)):
        angles = positions.flatten()[:, None] * frequencies
        table[:, start : start + quarter] = angles.sin()
        table[:, start + quarter : start + 2 * quarter] = angles.cos()
    return table


class Baseline(Projector):
    """A projector whose token count is planned before it is built, so that a refusal has a reason."""

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> Any:
        """What the budget means for this design on this grid: a token grid, a stride or a count.

        Raises:
            ValueError: the design cannot honour ``interface.budget`` on ``interface.grid``.
        """
        raise NotImplementedError

    @classmethod
    def skip(cls, interface: Interface, config: ProjectorConfig) -> tuple[bool, str]:
        """Skipped where :meth:`plan` refuses, for the reason that it gives."""
        try:
            cls.plan(interface, config)
        except ValueError as error:
            return True, str(error)
        return False, ""

    def asked(self, budget: int | None) -> int | None:
        """The budget of this call, else the one built for, else ``None``; for elastic designs."""
        return self.interface.budget if budget is None else budget

    def require_built_budget(self, budget: int | None, built: int) -> None:
        """Refuse another budget than built for; for designs that are not elastic.

        Raises:
            ValueError: ``budget`` is another one.
        """
        if budget is not None and budget != built:
            raise ValueError(f"{self.name} was built for {built} tokens and cannot give {budget}; rebuild it")


class MLPBaseline(Baseline):
    """Fewer tokens of the encoder's own width, and MLP2x on each; ``planned`` is what :meth:`plan` gave."""

    def __init__(self, interface: Interface, config: ProjectorConfig | None = None):
        super().__init__(interface, config)
        self.planned = self.plan(interface, self.config)
        self.mlp = mlp2x(interface.vision_width, interface.language_width)


class KeptTokens(MLPBaseline):
    """As many tokens as asked for: patches that are kept or merged, whatever their places.

    Attributes:
        default_share: tokens without a budget, of the patches.
        least: fewest tokens.
    """

    default_share: ClassVar[Fraction] = Fraction(1, 4)
    least: ClassVar[int] = 1

    @classmethod
    def count(cls, patches: int, budget: int | None) -> int:
        """Tokens of a grid of ``patches``; raises as :func:`token_count`."""
        default = ceil(patches * cls.default_share)
        return token_count(cls.name, budget, default=default, least=cls.least, most=patches)

    @classmethod
    def plan(cls, interface: Interface, config: Any) -> int:
        """The number of tokens."""
        return cls.count(interface.patch_count, interface.budget)
