"""SAM and SAM 2 through transformers: the same selection on another implementation of the model."""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from harness.models.sam import sam_frame
from harness.planning.weight_sources import expand_source
from harness.superpixels.source import SuperpixelConfig, device_of_choice
from svp.superpixels.prompting import Candidates, select_levels
from svp.superpixels.sam import SamSuperpixels

__all__ = ["TransformersSam"]


class TransformersSam(SamSuperpixels):
    """:class:`svp.superpixels.sam.SamSuperpixels` over ``SamModel`` or ``Sam2Model``.

    SAM 2 squashes the image to a square where SAM pads it. Its three masks are taken for the same levels;
    whether they are is not settled by its paper.
    """

    name = "sam_transformers"
    reference = "arXiv 2312.03585 (FMA-WSSS); SAM: arXiv 2304.02643; SAM 2: arXiv 2408.00714"
    needs_sam = False

    class Config(SamSuperpixels.Config):
        """As of ``sam``, and the checkpoint.

        Attributes:
            checkpoint: folder (with variables and ``~``) or hub name with safetensors weights.
            revision: of the hub repository.
            device: where the model runs; by default the GPU if there is one, else the CPU.
            engine: the decoder is called as it is.
        """

        checkpoint: str
        revision: str | None = None
        device: str | None = None
        engine: Literal["official"] = "official"

    def __init__(self, config: SuperpixelConfig | None = None, sam: Any = None):
        """Load the model (safetensors only, so that weights are data and never code).

        Raises:
            ValueError: no checkpoint is named, or it holds another kind of model.
        """
        from transformers import AutoConfig, AutoImageProcessor, Sam2Model, SamModel

        if config is None:
            raise ValueError("superpixel source 'sam_transformers' needs 'checkpoint': a folder or hub name")
        super().__init__(config)
        name = expand_source(self.config.checkpoint, "superpixels")
        source = {"pretrained_model_name_or_path": name, "revision": self.config.revision}
        kind = AutoConfig.from_pretrained(**source).model_type
        if kind not in ("sam", "sam2"):
            raise ValueError(f"{name} holds a '{kind}', not a 'sam' or 'sam2' model")
        model_class: Any = SamModel if kind == "sam" else Sam2Model
        model = model_class.from_pretrained(**source, use_safetensors=True).eval()
        self._model = model.to(device_of_choice(self.config.device))
        self._processor = AutoImageProcessor.from_pretrained(**source)
        self._padded = kind == "sam"

    def encode(self, image: np.ndarray) -> Any:
        """The model's image embeddings (a list of levels for SAM 2)."""
        # told which axis holds the colours: an image 1 or 3 pixels high could be read either way
        prepared = self._processor(images=image, return_tensors="pt", input_data_format="channels_last")
        pixels = prepared["pixel_values"]
        return self._model.get_image_embeddings(pixels.to(self._model.device, self._model.dtype))

    def frame(self, size: tuple[int, int]) -> tuple[int, int]:
        """``(h, w)`` of the image inside the encoder's input: all of it for SAM 2."""
        if not self._padded:
            square = self._processor.size
            return square["height"], square["width"]
        return sam_frame(*size, self._processor.size["longest_edge"])

    def decode(self, embedding: Any, points: Tensor) -> Candidates:
        """Candidates of ``points`` ``[P, 2]`` that pass the quality gate."""
        prompts = points.to(self._model.device, self._model.dtype)[None, :, None]
        made = self._model(image_embeddings=embedding, input_points=prompts, multimask_output=True)
        ious = made.iou_scores[0]
        kept, places, levels = select_levels(ious, self._gate)
        return Candidates(made.pred_masks[0].flatten(0, 1)[kept], ious.flatten()[kept], levels, places)

    def upscale(self, logits: Tensor, size: tuple[int, int]) -> Tensor:
        """``[M, H, W]`` logits at image resolution."""
        result = logits[:, None].float()
        if self._padded:
            square = self._processor.pad_size
            side = (square["height"], square["width"])
            h, w = self.frame(size)
            result = F.interpolate(result, side, mode="bilinear", align_corners=False)[..., :h, :w]
        return F.interpolate(result, size, mode="bilinear", align_corners=False)[:, 0]

    @property
    def cut(self) -> float:
        """0, as in the processors of transformers."""
        return 0.0

    def _given(self, embedding: Any) -> Any:
        raise ValueError("superpixel source 'sam_transformers' takes no embedding of another SAM")
