"""The prepare stage: synthetic scenes drawn, or REFER files read, and the prepared tables of either."""

from __future__ import annotations

from pathlib import Path

from harness.data.options import ReferData, SyntheticData, expand_root
from harness.data.prepare import prepare
from harness.data.synthetic import generate

__all__ = ["prepare_data"]


def prepare_data(options: SyntheticData | ReferData, out_dir: Path | str) -> None:
    """What the workflow's prepare job calls: everything a study reads, below ``out_dir``.

    Synthetic data writes ``refer/`` and ``prepared/``; a REFER folder only ``prepared/``.

    Args:
        options: what data, see ``harness.data.options``.
        out_dir: where to write.

    Raises:
        ValueError: the input does not hold together; the message names file and mend.
    """
    if isinstance(options, SyntheticData):
        generate(options, out_dir)
        return
    root = expand_root(options.root)
    if not root.is_dir():
        raise ValueError(f"data root {root} is no folder; give the folder that holds the datasets")
    prepare(
        root,
        options.datasets,
        Path(out_dir) / "prepared",
        image_dir=options.image_dir,
        image_root=options.root,
        train_pool=options.train_pool,
    )
