"""Controls that act at prediction time, on a finished run or on superpixels alone.

They answer what a score is worth: how well the model does without the text, and what the superpixels
would allow with a perfect choice. Like projectors they are one file each, found by folder.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np
import pandas as pd

from harness.plugins.discovery import load_projector
from harness.projector import Projector, ProjectorConfig

__all__ = ["Control", "load_control"]


class Control:
    """Base of every prediction-time control; subclasses set the class attributes as literals.

    Class attributes:
        name: the name used in config, tables and code.
        kind: always ``control``.
        acts_on: ``run`` (its weights unchanged) or ``superpixels`` (no model).
        needs: ``("superpixels",)`` where it reads them.
    """

    name: ClassVar[str]
    kind: ClassVar[str] = "control"
    acts_on: ClassVar[str] = "run"
    needs: ClassVar[tuple[str, ...]] = ()

    class Config(ProjectorConfig):
        """No options."""

    def __init__(self, config: ProjectorConfig | None = None):
        """Keep the options."""
        self.config = config if config is not None else self.Config()

    def adjust(self, projector: Projector) -> None:
        """Change the finished run's projector in place before it predicts; nothing by default."""

    def rewrite(self, rows: pd.DataFrame, seed: int) -> pd.DataFrame:
        """The expressions that the model is shown, in place of ``rows``; unchanged by default."""
        return rows

    def read_instead(self, images: np.ndarray, seed: int) -> Mapping[int, int]:
        """By image, the one whose visual tokens are read in its stead; its own where it is not named."""
        return {}

    def choose(self, masks: np.ndarray, target: np.ndarray) -> np.ndarray:
        """A predicted mask ``[H, W]`` from superpixels ``[K, H, W]`` and the ground truth."""
        raise NotImplementedError(f"control '{self.name}' chooses no superpixel")


def load_control(name: str, options: Mapping[str, Any]) -> Control:
    """The control called ``name``, with its options checked."""
    control: Any = load_projector(name)
    return control(control.Config(**options))
