"""Reordered: a finished SVP that predicts with its tokens in another order than it was trained with."""

from __future__ import annotations

from typing import ClassVar, Literal

from harness.plugins.controls import Control
from harness.projector import Projector, ProjectorConfig
from svp.projector import SVP

__all__ = ["Reordered"]


class Reordered(Control):
    """What the order of superpixels, which means nothing, is worth to the language model that reads them."""

    name: ClassVar[str] = "reordered"
    kind: ClassVar[str] = "control"
    acts_on: ClassVar[str] = "run"
    reference: ClassVar[str] = "a control: SVP (arXiv 2509.13676) with its tokens in another order"

    class Config(ProjectorConfig):
        """The order to predict in; meanings in :class:`svp.projector.SVP`."""

        order: Literal["area", "raster", "random", "stored"] = "random"
        order_seed: int = 0

    def adjust(self, projector: Projector) -> None:
        """Put the order in place of the trained one.

        Raises:
            ValueError: the run's projector is not an SVP.
        """
        if not isinstance(projector, SVP):
            raise ValueError(f"reordered acts on an SVP, not on '{projector.name}'; name an svp row in 'of'")
        projector.config = projector.config.model_copy(update=self.config.model_dump())
