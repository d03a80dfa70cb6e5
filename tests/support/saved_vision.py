"""Vision encoders of every kind, random and tiny, saved as the real ones are."""

import json

import torch
import transformers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}

SIZES |= {"image_size": 42, "patch_size": 14}

TEXT = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}

TEXT |= {"vocab_size": 64, "projection_dim": 16}


def clip(**vision):
    config = transformers.CLIPConfig(text_config=TEXT, vision_config={**SIZES, **vision}, projection_dim=16)
    return transformers.CLIPModel(config)


def siglip():
    text = {k: v for k, v in TEXT.items() if k != "projection_dim"}
    return transformers.SiglipModel(transformers.SiglipConfig(text_config=text, vision_config=SIZES))


def siglip2():
    vision = {k: v for k, v in SIZES.items() if k != "image_size"} | {"num_patches": 9}
    return transformers.Siglip2VisionModel(transformers.Siglip2VisionConfig(**vision))


SAVED = {
    "dinov2": ("dinov2", lambda: transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))),
    "registers": (
        "dinov2",
        lambda: transformers.Dinov2WithRegistersModel(
            transformers.Dinov2WithRegistersConfig(**SIZES, num_register_tokens=4)
        ),
    ),
    "clip": ("clip", clip),  # whole, with its text tower, as on the hub
    "openclip": ("clip", lambda: clip(hidden_act="gelu")),  # LAION's differ in the activation
    "siglip": ("siglip", siglip),  # SigLIP 2 of fixed resolution is saved in this class
    "siglip2": ("siglip", siglip2),
    "dinov3": ("auto", lambda: transformers.DINOv3ViTModel(transformers.DINOv3ViTConfig(**SIZES))),
    "vit": ("auto", lambda: transformers.ViTModel(transformers.ViTConfig(**SIZES))),
}


def save_vision(name, folder):
    torch.manual_seed(0)
    model = SAVED[name][1]().eval()
    with torch.no_grad():  # random weights must be large enough to tell tokens apart
        for p in model.parameters():
            p.copy_(torch.randn_like(p) * 0.2)
    model.save_pretrained(folder)
    normal = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(normal))
