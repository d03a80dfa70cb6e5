import numpy as np
import pytest
import torch
from PIL import Image
from saved_transformers_sam import save_transformers_sam
from transformers import (
    Sam2Config,
    Sam2ImageProcessor,
    Sam2Model,
    SamImageProcessor,
    SamModel,
    SamProcessor,
    ViTConfig,
)

from svp.superpixels.sam_transformers import TransformersSam


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sam")
    save_transformers_sam(folder)
    return folder


@torch.no_grad()
def plain(folder, image, side, iou_above, stable_above):
    """Masks through transformers' own processor, prompt by prompt."""

    model, processor = (
        SamModel.from_pretrained(folder),
        SamProcessor(SamImageProcessor.from_pretrained(folder)),
    )
    masks = []
    for y in (np.arange(side) + 0.5) / side * image.shape[0]:
        for x in (np.arange(side) + 0.5) / side * image.shape[1]:
            inputs = processor(images=image, input_points=[[[x, y]]], return_tensors="pt")
            made = model(**inputs)
            logits = processor.image_processor.post_process_masks(
                made.pred_masks, inputs["original_sizes"], inputs["reshaped_input_sizes"], binarize=False
            )[0][0]
            stability = (logits > 1).sum((1, 2)) / (logits > -1).sum((1, 2))
            good = (made.iou_scores[0, 0] > iou_above) & (stability >= stable_above)
            masks.append((logits > 0)[good])
    return torch.cat(masks).numpy()


@pytest.mark.parametrize("size", [(96, 96), (50, 80)])
def test_same_masks_as_the_processor_of_transformers(checkpoint, size):
    image = np.random.default_rng(0).integers(0, 256, (*size, 3)).astype(np.uint8)
    source = TransformersSam(
        TransformersSam.Config(
            checkpoint=str(checkpoint),
            preset="official_default",
            points_per_side=3,
            pred_iou_thresh=-0.5,
            stability_score_thresh=0.3,
            box_nms_thresh=1.0,
        )
    )
    made, expected = source.generate(image).masks, plain(checkpoint, image, 3, -0.5, 0.3)
    assert len(expected) > 5 and len(made) == len(expected)
    for one, other in ((made, expected), (expected, made)):
        assert min(max((m & e).sum() / (m | e).sum() for e in other) for m in one) > 0.995


@pytest.mark.parametrize("height", [1, 2, 3, 4])
def test_a_flat_image_is_read_by_its_colours(checkpoint, height):
    """One or three pixels high: a picture of Pillow's leaves no doubt which axis holds the colours."""
    image = np.random.default_rng(0).integers(0, 256, (height, 60, 3)).astype(np.uint8)
    source = TransformersSam(TransformersSam.Config(checkpoint=str(checkpoint)))
    pixels = SamImageProcessor.from_pretrained(checkpoint)(Image.fromarray(image), return_tensors="pt")
    with torch.no_grad():
        wanted = SamModel.from_pretrained(checkpoint).get_image_embeddings(pixels["pixel_values"])
        torch.testing.assert_close(source.encode(image), wanted)


def test_sam_2_where_transformers_has_it(tmp_path):
    vision = {
        "backbone_config": {
            "hidden_size": 8,
            "num_attention_heads": 1,
            "blocks_per_stage": [1, 1, 1, 1],
            "embed_dim_per_stage": [8, 16, 32, 64],
            "num_attention_heads_per_stage": [1, 1, 2, 2],
            "window_size_per_stage": [4, 2, 4, 2],
            "global_attention_blocks": [],
            "image_size": [128, 128],
            "window_positional_embedding_background_size": [4, 4],
            "model_type": "sam2_hiera_det_model",
        },
        "backbone_channel_list": [64, 32, 16, 8],
        "backbone_feature_sizes": [[32, 32], [16, 16], [8, 8]],
        "fpn_hidden_size": 32,
    }
    prompts = {"hidden_size": 32, "image_size": 128, "patch_size": 16, "mask_input_channels": 16}
    decoder = {"hidden_size": 32, "mlp_dim": 32, "num_attention_heads": 2, "iou_head_hidden_dim": 16}
    config = Sam2Config(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=decoder)
    Sam2Model(config).save_pretrained(tmp_path)
    size = {"size": {"height": 128, "width": 128}, "mask_size": {"height": 32, "width": 32}}
    Sam2ImageProcessor(**size).save_pretrained(tmp_path)
    gates = {"pred_iou_thresh": -9, "stability_score_thresh": 0, "box_nms_thresh": 1.0, "points_per_side": 2}
    source = TransformersSam(
        TransformersSam.Config(checkpoint=str(tmp_path), preset="official_default", **gates)
    )
    made = source.generate(np.random.default_rng(0).integers(0, 256, (40, 60, 3)).astype(np.uint8))
    assert made.masks.shape[1:] == (40, 60) and len(made.masks) > 0 and set(made.levels) <= {0, 1, 2}


def test_another_model_is_refused(tmp_path):
    ViTConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="'vit'"):
        TransformersSam(TransformersSam.Config(checkpoint=str(tmp_path)))
    with pytest.raises(ValueError, match="checkpoint"):
        TransformersSam()
