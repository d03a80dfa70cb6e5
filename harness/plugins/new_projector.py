"""Writes the file that a new projector starts from; it passes the contract tests as it stands."""

from __future__ import annotations

import builtins
import keyword
import re
from pathlib import Path

from harness.files import atomic_path
from harness.plugins.discovery import find_projectors

__all__ = ["write_projector"]

_TEMPLATE = '''"""{title}: one sentence on what it does to the patches."""

from torch import nn

from harness.projector import ImageFeatures, Projector, VisualTokens


class {title}(Projector):
    """Average pooling and an MLP, until you change ``forward``."""

    name = "{name}"
    reference = "where it is described"
    licence = "of the code that it is taken from"
    budgets = ()

    def __init__(self, interface, config=None):
        super().__init__(interface, config)
        skipped, reason = self.skip(interface, self.config)
        if skipped:
            raise ValueError(reason)
        self.count = interface.budget or -(-interface.patch_count // 4)
        d, width = interface.vision_width, interface.language_width
        self.mlp = nn.Sequential(nn.Linear(d, width), nn.GELU(), nn.Linear(width, width))

    @classmethod
    def skip(cls, interface, config):
        if interface.budget is not None and not 1 <= interface.budget <= interface.patch_count:
            return True, f"{{interface.budget}} tokens of {{interface.patch_count}} patches cannot be given"
        return False, ""

    def forward(self, image: ImageFeatures, *, budget=None, generator=None) -> VisualTokens:
        if budget not in (None, self.count):
            raise ValueError(f"built for {{self.count}} tokens, cannot give {{budget}}")
        rows = max(r for r in range(1, int(self.count**0.5) + 1) if self.count % r == 0)
        pooled = nn.functional.adaptive_avg_pool2d(image.as_map(), (rows, self.count // rows))
        return VisualTokens.dense(self.mlp(pooled.flatten(2).transpose(1, 2)))
'''

_IMPORTED = {"ImageFeatures", "Projector", "VisualTokens"}


def write_projector(name: str, folder: Path | str) -> Path:
    """Write ``<folder>/<name>.py``.

    Args:
        name: lower-case ASCII words joined by underscores.
        folder: where; ``baselines`` is searched by itself.

    Raises:
        ValueError: the name is not of such words, names a module or class that Python or the file has
            another use for, or is taken; or the file exists.
    """
    if not re.fullmatch("[a-z][a-z0-9]*(_[a-z0-9]+)*", name):
        raise ValueError(f"'{name}' cannot name a projector; take lower-case words joined by underscores")
    title = "".join(word.capitalize() for word in name.split("_"))
    if keyword.iskeyword(name) or keyword.iskeyword(title) or hasattr(builtins, title) or title in _IMPORTED:
        raise ValueError(
            f"'{name}' cannot name a projector: Python or its file has another use for '{name}' or '{title}'"
        )
    if name in find_projectors():
        raise ValueError(f"projector '{name}' exists in {find_projectors()[name].path}; take another name")
    path = Path(folder) / f"{name}.py"
    if path.exists():
        raise ValueError(f"{path} exists; remove it or take another name")
    with atomic_path(path) as aside:
        aside.write_text(_TEMPLATE.format(name=name, title=title))
    return path
