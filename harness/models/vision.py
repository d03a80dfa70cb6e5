"""Frozen vision encoders with a patch grid, from transformers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from transformers import AutoConfig, CLIPVisionModel, Dinov2Model, SiglipVisionModel

from harness.config import VisionConfig
from harness.models.encoder_hooks import hooked_blocks
from harness.projector import EncoderHook, ImageFeatures

__all__ = ["VisionEncoder", "load_vision"]

_CLASSES: dict[str, Any] = {"dinov2": Dinov2Model, "clip": CLIPVisionModel, "siglip": SiglipVisionModel}
_MEAN_STD = {
    "dinov2": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "clip": ((0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)),
    "siglip": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}


class VisionEncoder(nn.Module):
    """A frozen encoder; the whole image is squashed to its square input.

    Squashing keeps every pixel and maps superpixels to the patch grid by scale alone (a centre crop
    would lose targets at the border).
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, config: VisionConfig):
        """From a transformers vision model; the model's own sizes must match ``config``.

        Raises:
            ValueError: the model's patch size differs from the config's.
        """
        super().__init__()
        if model.config.patch_size != config.patch_size:
            raise ValueError(
                f"vision: the model has patch size {model.config.patch_size}, not {config.patch_size}"
            )
        self.model: Any = model.eval().requires_grad_(False)
        self.options = config
        mean, std = _MEAN_STD[config.kind]
        self.register_buffer("mean", torch.tensor(mean).view(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).view(3, 1, 1), persistent=False)

    @property
    def width(self) -> int:
        """``d``."""
        return int(self.model.config.hidden_size)

    def preprocess(self, image: np.ndarray) -> Tensor:
        """``[3, S, S]`` from a uint8 RGB ``[H, W, 3]``."""
        size = self.options.image_size
        if image.shape[:2] != (size, size):
            image = np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
        pixels = torch.as_tensor(np.ascontiguousarray(image)).permute(2, 0, 1).float() / 255
        return (pixels.to(self.mean.device) - self.mean) / self.std

    @torch.no_grad()
    def encoder_tokens(self, pixels: Tensor, hook: EncoderHook) -> Tensor:
        """``[b, k, d]`` what the selected layer gives of ``[b, 3, S, S]`` under ``hook``, patches alone."""
        height, width = self.options.grid
        layers, layer = self._layers(), self.options.layer
        blocks = layer if layer >= 0 else len(layers) + 1 + layer
        heads = int(self.model.config.num_attention_heads)
        with hooked_blocks(layers, hook, patches=height * width, heads=heads, blocks=blocks) as walk:
            selected = self._selected(self._run(pixels))
        assert walk.sizes is not None
        return selected[:, selected.shape[1] - walk.sizes.shape[1] :]

    def _run(self, pixels: Tensor) -> Any:
        kwargs = {"interpolate_pos_encoding": True} if self.options.kind != "dinov2" else {}
        return self.model(pixel_values=pixels, output_hidden_states=True, **kwargs)

    def _selected(self, out: Any) -> Tensor:
        # The last hidden state is taken after the final norm where the class gives it so.
        return out.last_hidden_state if self.options.layer == -1 else out.hidden_states[self.options.layer]

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, attention: bool = False) -> ImageFeatures:
        """Encode ``[b, 3, S, S]``.

        Args:
            pixels: preprocessed images.
            attention: also give the attention keys and the class token's attention at ``layer``.
        """
        recorded: dict[str, Tensor] = {}
        handles = self._record(recorded) if attention else []
        try:
            out = self._run(pixels)
        finally:
            for handle in handles:
                handle.remove()
        grid = self.options.grid
        count = grid[0] * grid[1]

        def patches(state: Tensor) -> Tensor:
            return state[:, state.shape[1] - count :]

        extras: dict[str, Any] = {}
        if attention:
            extras = self._attention(recorded, count)
        return ImageFeatures(
            patches=patches(self._selected(out)),
            grid=grid,
            levels=tuple(patches(out.hidden_states[i]) for i in self.options.levels),
            **extras,
        )

    def _layers(self) -> nn.ModuleList:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layer", "layers"):
                return module
        raise ValueError(f"{type(self.model).__name__} has no list of layers to read attention from")

    def _record(self, recorded: dict[str, Tensor]) -> list:
        layers = self._layers()
        index = self.options.layer if self.options.layer < 0 else self.options.layer - 1
        handles = []
        for name, module in layers[index].named_modules():
            leaf = name.split(".")[-1]
            if leaf in ("q_proj", "k_proj", "query", "key"):
                slot = "query" if leaf[0] == "q" else "key"

                def hook(_: nn.Module, __: tuple, output: Tensor, slot: str = slot) -> None:
                    recorded[slot] = output

                handles.append(module.register_forward_hook(hook))
        if len(handles) != 2:
            for handle in handles:
                handle.remove()
            raise ValueError(f"{type(self.model).__name__}: found {len(handles)} of 2 attention projections")
        return handles

    def _attention(self, recorded: dict[str, Tensor], count: int) -> dict[str, Tensor]:
        query, key = recorded["query"], recorded["key"]
        heads = int(self.model.config.num_attention_heads)
        extras = {"keys": key[:, key.shape[1] - count :]}
        if key.shape[1] == count:  # no class token (SigLIP)
            return extras
        b, length, width = key.shape
        q = query[:, :1].view(b, 1, heads, width // heads).transpose(1, 2)
        k = key.view(b, length, heads, width // heads).transpose(1, 2)
        weights = (q @ k.transpose(2, 3) / (width // heads) ** 0.5).softmax(-1)
        extras["cls_attention"] = weights.sum(1)[:, 0, length - count :]
        return extras


def load_vision(config: VisionConfig, source: Path | str) -> VisionEncoder:
    """The frozen encoder at ``source`` (a ``from_pretrained`` name or folder).

    Raises:
        OSError: nothing there that transformers can load; the message is its own.
    """
    declared = AutoConfig.from_pretrained(source)
    model = _CLASSES[config.kind].from_pretrained(source, config=getattr(declared, "vision_config", declared))
    return VisionEncoder(model, config)
