"""The house style of all figures: one font, one palette, one way to save."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # figures are written by jobs that have no screen

import matplotlib.pyplot as plt
from matplotlib.figure import Figure

from harness.files import atomic_path

__all__ = ["INK", "MUTED", "PALETTE", "Look", "house_style", "looks", "save"]

# Paul Tol's "bright" and "muted" colours, ordered so that neighbours differ in hue and lightness.
PALETTE = (
    *("#4477AA", "#EE6677", "#228833", "#CCBB44", "#AA3377"),
    *("#66CCEE", "#882255", "#44AA99", "#DD7733", "#332288"),
)
_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "p")
# Rows of most studies choose their colours before others do, and look the same in all of them.
_FIRST = {"svp": 3, "mlp": 4, "avg_pool": 5, "oracle": 6}
INK = "#222222"
MUTED = "#8A8A8A"
_RC: dict[str, Any] = {
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 8.0,
    "axes.titlesize": 8.5,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelsize": 8.0,
    "axes.labelcolor": INK,
    "axes.edgecolor": "#666666",
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5,
    "xtick.color": "#444444",
    "ytick.color": "#444444",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "xtick.major.size": 2.5,
    "ytick.major.size": 2.5,
    "legend.frameon": False,
    "legend.fontsize": 7.5,
    "legend.handlelength": 1.4,
    "lines.linewidth": 1.3,
    "lines.markersize": 5.5,
    "patch.linewidth": 0.8,
    "figure.constrained_layout.use": True,
    "pdf.fonttype": 42,  # text stays text
    "savefig.facecolor": "white",
}


@dataclass(frozen=True)
class Look:
    """How a projector looks in every figure."""

    color: str
    marker: str


def _slot(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "big")


def looks(names: Iterable[str]) -> dict[str, Look]:
    """A colour and a marker for each projector, the same in every figure of a study.

    A name has its own preferred colour; where two of the same figure want one colour, the later in
    the order of their hashes takes the next free one, so that up to ten projectors never share a colour.
    SVP and the rows that it is mostly compared with come first: theirs are the same in all studies.
    """
    names = set(names)
    out: dict[str, Look] = {}
    taken: list[int] = []
    own = [name for name in _FIRST if name in names]
    for name in [*own, *sorted(names - set(own), key=_slot)]:
        if len(taken) == len(PALETTE):
            taken = []
        color = _FIRST.get(name, _slot(name)) % len(PALETTE)
        while color in taken:
            color = (color + 1) % len(PALETTE)
        taken.append(color)
        out[name] = Look(PALETTE[color], _MARKERS[_slot(name) // len(PALETTE) % len(_MARKERS)])
    return out


@contextmanager
def house_style() -> Iterator[None]:
    """Everything drawn inside is in the house style; nothing outside is touched."""
    settings: dict[Any, Any] = {**matplotlib.rcParamsDefault, **_RC, "backend": "Agg"}
    with matplotlib.rc_context(settings):
        yield


def save(figure: Figure, folder: Path | str, name: str) -> list[Path]:
    """Write ``name.png`` (200 dpi) and ``name.pdf`` atomically, without dates: equal figures, equal bytes.

    Returns:
        The two paths.
    """
    paths = []
    for suffix, metadata in (("png", {"Software": None}), ("pdf", {"CreationDate": None, "Producer": None})):
        path = Path(folder) / f"{name}.{suffix}"
        with atomic_path(path) as aside:
            figure.savefig(aside, format=suffix, dpi=200, metadata=metadata)
        paths.append(path)
    plt.close(figure)
    return paths
