"""``svp weights``: published checkpoints taken apart."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from cyclopts import App

from harness.commands.answer import answer

__all__ = ["weights"]

weights = App(name="weights", help="Published checkpoints, in the formats that the harness loads.")


@weights.command
def convert(
    source: Path, out: Path, *, sam: Literal["vit_b", "vit_l", "vit_h"] = "vit_h", json: bool = False
) -> None:
    """Take a GLaMM or LISA checkpoint apart: language model, SAM, [SEG] head and projector.

    Args:
        source: the checkpoint's folder (Hugging Face layout, LoRA merged).
        out: where ``language/``, ``sam.safetensors``, ``start.safetensors`` and ``report.json`` go.
        sam: the size of its SAM.
        json: print the report, every key used, left, unknown and missing, as one JSON value.
    """
    import torch
    from segment_anything import sam_model_registry

    from harness.models.glamm import convert_checkpoint

    with torch.device("meta"):
        shapes = sam_model_registry[sam](checkpoint=None)
    found = convert_checkpoint(source, out, shapes).as_json()
    lines = [f"{name}: {value}" for name, value in found["counts"].items()]
    answer(found, json, "\n".join(lines))
