"""A small SAM of transformers' classes in a checkpoint folder."""

from pathlib import Path

import torch
from transformers import (
    SamConfig,
    SamImageProcessor,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)


def save_transformers_sam(folder: Path) -> None:
    """Model and image processor at 96 pixels, with weights that make some stable masks."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SamModel(
            SamConfig(
                vision_config=SamVisionConfig(
                    hidden_size=32,
                    output_channels=32,
                    num_hidden_layers=2,
                    num_attention_heads=4,
                    image_size=96,
                    patch_size=8,
                    window_size=0,
                    global_attn_indexes=[0, 1],
                    mlp_dim=64,
                    num_pos_feats=16,
                ),
                prompt_encoder_config=SamPromptEncoderConfig(
                    hidden_size=32, image_size=96, patch_size=8, mask_input_channels=16
                ),
                mask_decoder_config=SamMaskDecoderConfig(
                    hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32
                ),
            )
        )
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
        for mlp in model.mask_decoder.output_hypernetworks_mlps:  # bolder masks, so that some are stable
            mlp.proj_out.weight.data *= 30
    model.save_pretrained(folder)
    SamImageProcessor(
        size={"longest_edge": 96}, pad_size={"height": 96, "width": 96}, mask_size={"longest_edge": 48}
    ).save_pretrained(folder)
