"""A tiny random SAM of the official classes, tuned so that its masks pass the gates."""

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer


def build_sam(seed: int = 0) -> Sam:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        sam = Sam(
            ImageEncoderViT(
                img_size=96,
                patch_size=8,
                embed_dim=96,
                depth=4,
                num_heads=4,
                out_chans=64,
                mlp_ratio=4,
                norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
                qkv_bias=True,
                use_rel_pos=True,
                window_size=0,
            ),
            PromptEncoder(
                embed_dim=64, image_embedding_size=(12, 12), input_image_size=(96, 96), mask_in_chans=16
            ),
            MaskDecoder(
                transformer=TwoWayTransformer(depth=2, embedding_dim=64, mlp_dim=128, num_heads=4),
                transformer_dim=64,
                num_multimask_outputs=3,
                iou_head_depth=3,
                iou_head_hidden_dim=64,
            ),
        )
        for parameter in sam.mask_decoder.parameters():  # default biases are small: give each a say
            if parameter.ndim == 1:
                parameter.data += 0.1 * torch.randn_like(parameter)
        # an untrained decoder draws the same mask for every point: sharpen where it looks and what it
        # draws, and cut the masks high, so that prompts differ and boxes do not all span the image
        for name, parameter in sam.mask_decoder.named_parameters():
            if name.endswith(("q_proj.weight", "k_proj.weight")):
                parameter.data *= 4
            elif "hypernetworks" in name and name.endswith("weight"):
                parameter.data *= 3
            elif "iou_prediction_head" in name and name.endswith("weight"):
                parameter.data *= 2
    sam.mask_threshold = 2.0
    return sam.eval()


@pytest.fixture(scope="session")
def sam() -> Sam:
    return build_sam()


@pytest.fixture(autouse=True)
def one_thread():
    torch.set_num_threads(1)
