"""SAM through the official ``segment_anything`` classes: loading, encoding, batched mask decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import BaseModel, ConfigDict
from segment_anything import sam_model_registry
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer
from segment_anything.utils.transforms import ResizeLongestSide
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms.functional import resize, to_pil_image

from harness.files import read_json, sha256_file, write_json
from harness.precision import without_autocast
from harness.tensors import load_tensors, save_tensors

__all__ = [
    "NoEncoder",
    "TinySamSize",
    "build_tiny_sam",
    "decode_masks",
    "load_sam",
    "region_embeddings",
    "sam_frame",
    "sam_input",
    "save_tiny_sam",
    "upscale_logits",
]


class TinySamSize(BaseModel):
    """Geometry of a small SAM built from the official classes.

    The image embedding is ``image_size / patch_size`` on a side, the low-resolution masks four times that.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    image_size: int = 96
    patch_size: int = 8
    width: int = 128
    depth: int = 1
    heads: int = 4
    prompt_width: int = 64
    decoder_heads: int = 2


def build_tiny_sam(size: TinySamSize) -> Sam:
    """A SAM of the official classes at another size, with random weights."""
    side = size.image_size // size.patch_size
    encoder = ImageEncoderViT(
        img_size=size.image_size,
        patch_size=size.patch_size,
        embed_dim=size.width,
        depth=size.depth,
        num_heads=size.heads,
        out_chans=size.prompt_width,
        qkv_bias=True,
        use_rel_pos=False,
        global_attn_indexes=tuple(range(size.depth)),
    )
    prompts = PromptEncoder(
        embed_dim=size.prompt_width,
        image_embedding_size=(side, side),
        input_image_size=(size.image_size, size.image_size),
        mask_in_chans=16,
    )
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(
            depth=2,
            embedding_dim=size.prompt_width,
            mlp_dim=2 * size.prompt_width,
            num_heads=size.decoder_heads,
            attention_downsample_rate=1,
        ),
        transformer_dim=size.prompt_width,
        iou_head_depth=3,
        iou_head_hidden_dim=size.prompt_width,
    )
    return Sam(encoder, prompts, decoder)


def save_tiny_sam(sam: Sam, size: TinySamSize, folder: Path | str) -> None:
    """Write ``model.safetensors`` and ``config.json`` into ``folder``."""
    folder = Path(folder)
    save_tensors(folder / "model.safetensors", sam.state_dict())
    write_json(folder / "config.json", size.model_dump())


def load_sam(source: Path | str, kind: str = "tiny", sha256: str | None = None) -> Sam:
    """A SAM in evaluation mode.

    Args:
        source: folder of :func:`save_tiny_sam`, an official ``.pth`` checkpoint, or one of its names and
            shapes in safetensors.
        kind: ``tiny``, ``vit_b``, ``vit_l`` or ``vit_h``.
        sha256: expected digest of the checkpoint's bytes, if known.

    Raises:
        FileNotFoundError: nothing lies at ``source``.
        ValueError: the digest differs, the file cannot be read, or it holds other weights than the model.
    """
    source = Path(source)
    if not source.exists():
        raise FileNotFoundError(f"SAM weights {source} are not there; `svp doctor` says how to get them")
    if source.is_dir():
        size = TinySamSize.model_validate(read_json(source / "config.json"))
        sam = build_tiny_sam(size)
        state = load_tensors(source / "model.safetensors", "delete the folder and pretrain again")
    else:
        if sha256 is not None and sha256_file(source) != sha256:
            raise ValueError(
                f"{source}: sha256 differs from the expected {sha256[:12]}…; fetch it again, or set "
                "models.sam.sha256: null if it is a SAM of your own"
            )
        if kind not in sam_model_registry:
            raise ValueError(
                f"{source} is a file, a tiny SAM is a folder; name its kind: vit_b, vit_l or vit_h"
            )
        sam = sam_model_registry[kind](checkpoint=None)
        state = _read_checkpoint(source)
    own = sam.state_dict()
    missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
    misfit = [name for name in own.keys() & state.keys() if own[name].shape != state[name].shape]
    if missing or unexpected or misfit:
        raise ValueError(
            f"{source} is no {kind} SAM: {len(missing)} keys missing, {len(unexpected)} unexpected, "
            f"{len(misfit)} of another shape; name its own kind"
        )
    sam.load_state_dict(state)
    return sam.eval().requires_grad_(False)


def _read_checkpoint(path: Path) -> dict[str, Tensor]:
    if path.suffix == ".safetensors":
        return load_tensors(path, "convert the checkpoint again")
    # weights_only: a checkpoint from the internet is data, never code
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is cut short, or no checkpoint of torch's; fetch it again") from error


class NoEncoder(nn.Module):
    """In place of an image encoder whose embeddings are cached: a ViT-H would take 2.5 GB of a GPU."""

    def __init__(self, img_size: int):
        """Of a square input ``img_size`` pixels a side."""
        super().__init__()
        self.img_size = img_size

    def forward(self, image: Tensor) -> Tensor:
        """Refuse.

        Raises:
            RuntimeError: always.
        """
        raise RuntimeError("this SAM was put together without its image encoder; read cached embeddings")


def sam_frame(height: int, width: int, image_size: int) -> tuple[int, int]:
    """``(h, w)`` of an image inside SAM's square input: the longest side fills it, the rest is padding.

    Rounded as SAM does, but never to nothing: a side keeps one pixel at least.
    """
    h, w = ResizeLongestSide.get_preprocess_shape(height, width, image_size)
    return max(h, 1), max(w, 1)


def sam_input(image: np.ndarray, sam: Sam) -> Tensor:
    """``[3, S, S]`` normalised and padded input of SAM's image encoder from a uint8 RGB ``[H, W, 3]``."""
    frame = sam_frame(image.shape[0], image.shape[1], sam.image_encoder.img_size)
    resized = np.array(resize(to_pil_image(image), list(frame))) if frame != image.shape[:2] else image
    pixels = torch.as_tensor(np.ascontiguousarray(resized)).permute(2, 0, 1).float()
    return sam.preprocess(pixels[None].to(sam.device))[0]


def decode_masks(
    sam: Sam,
    image_embeddings: Tensor,
    prompts: Tensor,
    *,
    outputs: Literal["single", "three", "all"] = "single",
) -> tuple[Tensor, Tensor]:
    """Run SAM's own mask decoder on prompts of different images in one batch.

    The official decoder takes one image embedding and adds a dense prompt to it for every prompt. Given a
    zero image and the real embeddings as dense prompts, the very same forward serves many images.

    Args:
        sam: supplies the decoder and the prompt encoder's position and no-mask embeddings.
        image_embeddings: ``[m, C, h, w]``, one an expression.
        prompts: ``[m, t, C]`` sparse prompt embeddings.
        outputs: the single mask, the three of an ambiguous prompt, or all four in that order.

    Returns:
        logits ``[m, 1, 3 or 4, 4h, 4w]`` and predicted IoU ``[m, 1, 3 or 4]``.
    """
    no_mask = sam.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
    with without_autocast(image_embeddings):  # else neighbouring cells get each other's phases
        positions = sam.prompt_encoder.get_dense_pe()
    logits, quality = sam.mask_decoder.predict_masks(
        image_embeddings=torch.zeros_like(image_embeddings[:1]),
        image_pe=positions.to(image_embeddings.dtype),
        sparse_prompt_embeddings=prompts,
        dense_prompt_embeddings=image_embeddings + no_mask,
    )
    chosen = {"single": slice(0, 1), "three": slice(1, None), "all": slice(None)}[outputs]
    return logits[:, chosen], quality[:, chosen]


def region_embeddings(image_embeddings: Tensor, masks: Tensor) -> Tensor:
    """``[m, 1, C]`` mean of ``image_embeddings [m, C, h, w]`` under soft ``masks [m, 1, s, s]``."""
    height, width = image_embeddings.shape[-2:]
    share = F.adaptive_avg_pool2d(masks, (height, width))
    total = share.sum((2, 3)).clamp(min=1e-6)
    return ((image_embeddings * share).sum((2, 3)) / total)[:, None]


def upscale_logits(
    logits: Tensor, image_size: int, frame: tuple[int, int], height: int, width: int
) -> Tensor:
    """Low-resolution logits ``[m, 1, s, s]`` to the original image ``[m, 1, height, width]``.

    As SAM does: to its square input, the padding cut off, then to the image; bilinear.
    """
    square = F.interpolate(logits, (image_size, image_size), mode="bilinear", align_corners=False)
    cropped = square[..., : frame[0], : frame[1]]
    if frame == (height, width):
        return cropped
    return F.interpolate(cropped, (height, width), mode="bilinear", align_corners=False)
