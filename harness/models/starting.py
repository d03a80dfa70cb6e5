"""Weights that a run starts from beside its frozen models: ``[SEG]`` head, mask decoder, projector."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from harness.models.ris import RISModel
from harness.tensors import load_tensors

__all__ = ["load_start"]


def load_start(model: RISModel, path: Path, *, projector: bool) -> None:
    """Load the ``seg_head.*``, the ``mask_decoder.*`` if any, and, if ``projector``, the ``projector.*``.

    A projector's own names differ from the file's; its tensors are taken in order, and every one must fit.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: a tensor is missing, too many, or of another shape.
    """
    tensors = load_tensors(path, "convert the checkpoint again")
    parts: dict[str, nn.Module] = {"seg_head": model.seg_head}
    if any(name.startswith("mask_decoder.") for name in tensors):
        parts["mask_decoder"] = model.sam.mask_decoder
    if projector:
        parts["projector"] = model.projector
    for name, module in parts.items():
        _fill(module, [v for k, v in sorted(tensors.items()) if k.startswith(f"{name}.")], f"{path}: {name}")


def _fill(module: nn.Module, tensors: list[Tensor], where: str) -> None:
    # by name: bias and weight of layer 0, then of layer 2
    own = [p for _, p in sorted(module.named_parameters())]
    ours, theirs = [list(p.shape) for p in own], [list(t.shape) for t in tensors]
    if ours != theirs:
        raise ValueError(
            f"{where} holds tensors of shapes {theirs}, the model needs {ours}; "
            "name the models that the checkpoint was trained with, or leave models.start_projector off"
        )
    with torch.no_grad():
        for parameter, tensor in zip(own, tensors, strict=True):
            parameter.copy_(tensor)
