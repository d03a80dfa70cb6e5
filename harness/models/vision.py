"""Frozen vision encoders with a patch grid, from transformers."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import MODEL_MAPPING, AutoConfig
from transformers.image_processing_base import ImageProcessingMixin

from harness.config import VisionConfig
from harness.models.encoder_hooks import hooked_blocks
from harness.models.loading import load_strictly
from harness.precision import without_autocast
from harness.projector import EncoderHook, ImageFeatures

__all__ = ["VisionEncoder", "load_vision"]

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

    def __init__(
        self,
        model: Any,
        config: VisionConfig,
        mean_std: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    ):
        """From a transformers vision model; the model's own sizes must match ``config``.

        Args:
            model: gives its patches in raster order behind whatever other tokens it has.
            config: what is taken from it.
            mean_std: of its pixels, in 0..1, by channel; default: those of ``config.kind``.

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
        mean, std = mean_std or _MEAN_STD[config.kind]
        self._takes_sizes = "interpolate_pos_encoding" in inspect.signature(model.forward).parameters
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
            image = np.array(Image.fromarray(image).resize((size, size), Image.Resampling.BICUBIC))
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

    def _selected(self, out: Any) -> Tensor:
        # The last hidden state is taken after the final norm where the class gives it so.
        return out.last_hidden_state if self.options.layer == -1 else out.hidden_states[self.options.layer]

    @torch.no_grad()
    def forward(self, pixels: Tensor, *, attention: bool = False) -> ImageFeatures:
        """Encode ``[b, 3, S, S]``.

        Args:
            pixels: preprocessed images.
            attention: also give the attention keys and the class token's attention, of the block that
                ``layer`` comes out of and of the last block.
        """
        layer = self.options.layer
        selected: dict[str, Tensor] = {}
        last: dict[str, Tensor] = {}
        handles: list[RemovableHandle] = []
        try:
            if attention:
                handles += self._record(layer if layer < 0 else layer - 1, selected)
                handles += self._record(-1, last)
            out = self._run(pixels)
        finally:
            for handle in handles:
                handle.remove()
        grid = self.options.grid
        count = grid[0] * grid[1]

        def patches(state: Tensor) -> Tensor:
            if state.shape[1] < count:
                raise ValueError(
                    f"{type(self.model).__name__} gives {state.shape[1]} tokens, fewer than {count} patches"
                )
            return state[:, state.shape[1] - count :]

        extras: dict[str, Any] = {}
        if attention:
            heads = int(self.model.config.num_attention_heads)
            for prefix, recorded, split in (("", selected, heads), ("last_", last, 1)):
                keys = recorded["key"][:, -count:]
                extras[f"{prefix}keys"] = keys.unflatten(-1, (heads, -1)).transpose(1, 2)
                if recorded["key"].shape[1] > count:  # else there is no class token (SigLIP)
                    attended = _class_attention(recorded["query"], recorded["key"], split)
                    extras[f"{prefix}cls_attention"] = attended[:, -count:]
        return ImageFeatures(
            patches=patches(self._selected(out)),
            grid=grid,
            levels=tuple(patches(out.hidden_states[i]) for i in self.options.levels),
            **extras,
        )

    def _run(self, pixels: Tensor) -> Any:
        if self.model.config.model_type == "siglip2_vision_model":
            return self.model(**self._as_patches(pixels), output_hidden_states=True)
        kwargs = {"interpolate_pos_encoding": True} if self._takes_sizes else {}
        return self.model(pixel_values=pixels, output_hidden_states=True, **kwargs)

    def _as_patches(self, pixels: Tensor) -> dict[str, Tensor]:
        """SigLIP 2's input of any aspect ratio: flattened patches, channels last, and the grid."""
        b, side, (h, w) = len(pixels), self.options.patch_size, self.options.grid
        cells = pixels.unflatten(3, (w, side)).unflatten(2, (h, side)).permute(0, 2, 4, 3, 5, 1)
        return {
            "pixel_values": cells.reshape(b, h * w, -1),
            "pixel_attention_mask": torch.ones(b, h * w, dtype=torch.long, device=pixels.device),
            "spatial_shapes": torch.tensor([[h, w]] * b, device=pixels.device),
        }

    def _layers(self) -> nn.ModuleList:
        for name, module in self.model.named_modules():
            if isinstance(module, nn.ModuleList) and name.split(".")[-1] in ("layer", "layers"):
                return module
        raise ValueError(f"{type(self.model).__name__} has no list of layers to read attention from")

    def _record(self, block: int, recorded: dict[str, Tensor]) -> list[RemovableHandle]:
        if any(name.startswith("rope_") for name in vars(self.model.config)):
            raise ValueError(
                f"{type(self.model).__name__} turns its attention keys by position: neither they nor the "
                "class token's attention can be read off; take another encoder for this projector"
            )
        handles = []
        for name, module in self._layers()[block].named_modules():
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


def _class_attention(query: Tensor, key: Tensor, heads: int) -> Tensor:
    """``[b, t]`` of the first of ``t`` tokens to all, summed over heads, from ``[b, t, d]`` each."""
    q = query[:, :1].float().unflatten(-1, (heads, -1)).transpose(1, 2)
    k = key.float().unflatten(-1, (heads, -1)).transpose(1, 2)
    with without_autocast(k):  # else near scores tie, and which patches are kept goes by their order
        weights = (q @ k.transpose(2, 3) / k.shape[-1] ** 0.5).softmax(-1)
    return weights.sum(1)[:, 0]


def load_vision(config: VisionConfig, source: Path | str) -> VisionEncoder:
    """The frozen encoder at ``source`` (a ``from_pretrained`` name or folder).

    Raises:
        OSError: nothing there that transformers can load; the message is its own.
        ValueError: no vision model, weights are missing, or (``auto``) its normalisation is not told.
    """
    declared = AutoConfig.from_pretrained(source)
    options = getattr(declared, "vision_config", declared)
    if type(options) not in MODEL_MAPPING:
        raise ValueError(f"{source} is a {declared.model_type}, which transformers has no vision model for")
    # The other tower of a CLIP or SigLIP is left where it lies.
    model = load_strictly(MODEL_MAPPING[type(options)], source, config=options)
    return VisionEncoder(model, config, _own_normalisation(source) if config.kind == "auto" else None)


def _own_normalisation(source: Path | str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    try:
        processor, _ = ImageProcessingMixin.get_image_processor_dict(source)
        return tuple(processor["image_mean"]), tuple(processor["image_std"])
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{source} has no preprocessor_config.json with image_mean and image_std; "
            "put it there, or name the encoder's kind"
        ) from error
