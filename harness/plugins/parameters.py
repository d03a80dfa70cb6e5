"""Trainable parameters of every projector beside those of its released code, on the meta device."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import torch

from harness.files import atomic_path
from harness.plugins.discovery import find_projectors, load_projector
from harness.projector import Interface, Projector

__all__ = ["count_parameters", "layer_table", "parameter_table", "write_parameter_report"]

WIDTHS = ((1024, 4096), (1024, 2048), (1024, 896))
GRID = (24, 24)
LEVELS = 4


def _build(name: str, vision: int, language: int, options: dict | None = None) -> Projector | None:
    projector = load_projector(name)
    if not (isinstance(projector, type) and issubclass(projector, Projector)):
        return None
    with torch.device("meta"):
        interface = Interface(vision, language, GRID, level_count=LEVELS)
        return projector(interface, projector.Config(**(options or {})))


def count_parameters(name: str) -> dict[str, int]:
    """Trainable parameters of a projector with its default options, by ``"1024x4096"`` and the like.

    Built for a 24x24 grid, four further encoder levels and the published default budget; fixed tables
    do not count. Empty for controls that are no projectors.
    """
    counts = {}
    for vision, language in WIDTHS:
        built = _build(name, vision, language)
        if built is not None:
            trainable = (p.numel() for p in built.parameters() if p.requires_grad)
            counts[f"{vision}x{language}"] = sum(trainable)
    return counts


def parameter_table() -> pd.DataFrame:
    """One row a projector: ``projector``, ``kind`` and its parameters at each pair of widths."""
    rows = [
        {"projector": name, "kind": info.kind, **counts}
        for name, info in sorted(find_projectors().items())
        if (counts := count_parameters(name))
    ]
    return pd.DataFrame(rows)


def layer_table(name: str, vision: int, language: int, options: dict | None = None) -> pd.DataFrame:
    """Parameters of a projector's direct parts: ``part``, ``parameters``.

    Raises:
        ValueError: ``name`` is a control without parameters.
    """
    built = _build(name, vision, language, options)
    if built is None:
        raise ValueError(f"{name} is no projector: it has no layers to count")
    parts: dict[str, int] = {}
    for key, parameter in built.named_parameters():
        part = key.split(".")[0]
        parts[part] = parts.get(part, 0) + parameter.numel()
    return pd.DataFrame({"part": list(parts), "parameters": list(parts.values())})


def _agrees(count: int, published: str) -> bool:
    low, _, high = published.partition("-")
    digits = len(low.partition(".")[2])
    return float(low) <= round(count / 1e6, digits) <= float(high or low)


def write_parameter_report(published: Path | str, folder: Path | str) -> pd.DataFrame:
    """Write ``parameters.csv`` and ``parameters.md``: our counts against the published ones.

    Args:
        published: CSV with ``projector, widths, millions, note`` of the released code; ``millions`` is a
            number or ``low-high``.
        folder: where the two files go.

    Returns:
        The comparison: ``projector, widths, parameters, published_millions, agrees, note``.
    """
    known = pd.read_csv(published, dtype=str, keep_default_na=False)
    table = parameter_table()
    long = table.melt(["projector", "kind"], var_name="widths", value_name="parameters")
    merged = long.merge(known, on=["projector", "widths"], how="left").fillna({"millions": "", "note": ""})
    merged["agrees"] = [
        ("yes" if _agrees(count, value) else "no") if value else ""
        for count, value in zip(merged["parameters"], merged["millions"], strict=True)
    ]
    merged = merged.rename(columns={"millions": "published_millions"}).sort_values(["projector", "widths"])
    merged = merged[["projector", "kind", "widths", "parameters", "published_millions", "agrees", "note"]]
    with atomic_path(Path(folder) / "parameters.csv") as aside:
        merged.to_csv(aside, index=False)
    with atomic_path(Path(folder) / "parameters.md") as aside:
        aside.write_text(_markdown(merged))
    return merged


def _markdown(merged: pd.DataFrame) -> str:
    lines = [
        "# Parameters, ours against the released code's",
        "",
        "Trainable parameters of each projector between an encoder of width 1024 (24x24 patches, four",
        "further levels) and a language model of width 4096, 2048 or 896, at its default budget and options.",
        "The released code's are worked out from its layers; a blank says that none is known.",
        "Written by `svp projectors --out results/reference`.",
        "",
        "| projector | widths | ours | ours (M) | released (M) | agree | note |",
        "|---|---|---:|---:|---:|---|---|",
    ]
    lines += [
        f"| {name} | {widths} | {count:,} | {count / 1e6:.2f} | {released} | {agrees} | {note} |"
        for name, _, widths, count, released, agrees, note in merged.itertuples(index=False, name=None)
    ]
    lines += ["", "## Layer by layer", "", "At 1024x4096; parts are the projector's attributes."]
    for name in sorted(merged["projector"].unique()):
        parts = layer_table(name, *WIDTHS[0])
        cells = ", ".join(f"{part} {count:,}" for part, count in parts.itertuples(index=False))
        lines.append(f"- **{name}**: {cells}")
    return "\n".join(lines) + "\n"
