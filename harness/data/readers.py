"""One door to the dataset formats."""

from __future__ import annotations

from pathlib import Path

from harness.data.grefcoco import read_grefcoco
from harness.data.options import ReferSet
from harness.data.reasonseg import read_reasonseg
from harness.data.refer import ReferDataset, read_refer

__all__ = ["read_dataset"]


def read_dataset(root: Path | str, part: ReferSet) -> ReferDataset:
    """Read one dataset of a REFER folder in its format.

    Raises:
        ValueError: see ``read_refer``, ``read_grefcoco`` and ``read_reasonseg``.
    """
    if part.format == "grefcoco":
        return read_grefcoco(root, part.place, part.split_by)
    if part.format == "reasonseg":
        return read_reasonseg(root, part.place)
    return read_refer(root, part.place, part.split_by)
