"""Every vision encoder, random and tiny, saved as the real one is, against transformers' own outputs."""

import math

import numpy as np
import pytest
import torch
import transformers
from saved_vision import SAVED, SIZES, save_vision

from harness.config import VisionConfig
from harness.models.vision import load_vision

IMAGE = np.random.default_rng(0).integers(0, 256, (42, 42, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def save(name):
        folder = tmp_path_factory.getbasetemp() / f"vision-{name}"
        if not folder.exists():
            save_vision(name, folder)
        return folder

    return save


def encoder(saved, name, **options):
    config = VisionConfig(kind=SAVED[name][0], source=name, image_size=42, patch_size=14, **options)
    return load_vision(config, saved(name))


def own_output(saved, name, pixels, side=42):
    """Transformers' own forward of the saved weights, with attention maps."""
    model = transformers.AutoModel.from_pretrained(saved(name), attn_implementation="eager").eval()
    model = getattr(model, "vision_model", model)
    inputs = {"pixel_values": pixels}
    if name == "siglip2":
        processor = transformers.Siglip2ImageProcessor(
            do_resize=False, do_normalize=False, do_rescale=False, patch_size=14, max_num_patches=9
        )
        inputs = dict(processor(images=list(pixels), return_tensors="pt", input_data_format="channels_first"))
    elif name in ("clip", "openclip", "siglip", "vit"):
        inputs["interpolate_pos_encoding"] = True
    with torch.no_grad():
        return model(**inputs, output_hidden_states=True, output_attentions=True)


@pytest.mark.parametrize("name", SAVED)
def test_patches_and_levels_are_the_models_own(saved, name):
    this = encoder(saved, name, layer=-2, levels=(1, -1))
    pixels = torch.stack([this.preprocess(IMAGE), this.preprocess(IMAGE[::-1])])
    got, own = this(pixels), own_output(saved, name, pixels)
    assert got.grid == (3, 3) and got.patches.shape == (2, 9, 32)
    for mine, index in ((got.patches, -2), (got.levels[0], 1), (got.levels[1], -1)):
        assert torch.allclose(mine, own.hidden_states[index][:, -9:], atol=1e-5)
    last = encoder(saved, name)(pixels).patches
    assert torch.allclose(last, own.last_hidden_state[:, -9:], atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "registers", "clip", "vit"])
def test_class_attention_is_that_of_the_attention_maps(saved, name):
    this = encoder(saved, name, layer=-2)
    pixels = this.preprocess(IMAGE)[None]
    got, own = this(pixels, attention=True), own_output(saved, name, pixels)
    # hidden_states[-2] comes out of the last layer but one
    assert torch.allclose(got.cls_attention, own.attentions[-2].sum(1)[:, 0, -9:], atol=1e-5)


def own_projections(saved, name, pixels):
    """Outputs of transformers' own query and key projections: two lists, an array ``[t, d]`` a block."""
    model = transformers.AutoModel.from_pretrained(saved(name)).eval()
    model = getattr(model, "vision_model", model)
    outputs = {"q": [], "k": []}
    for path, module in model.named_modules():
        leaf = path.split(".")[-1]
        if leaf in ("q_proj", "query", "k_proj", "key"):
            into = outputs[leaf[0]]
            module.register_forward_hook(lambda _, __, out, into=into: into.append(out[0].numpy()))
    with torch.no_grad():
        model(pixel_values=pixels)
    return outputs["q"], outputs["k"]


@pytest.mark.parametrize("name", ["dinov2", "registers", "clip", "vit"])
def test_keys_stand_apart_by_head(saved, name):
    this = encoder(saved, name, layer=-2)
    pixels = this.preprocess(IMAGE)[None]
    got, own = this(pixels, attention=True), own_output(saved, name, pixels)
    queries, _ = own_projections(saved, name, pixels)
    for keys, block in ((got.keys, -2), (got.last_keys, -1)):
        assert keys.shape == (1, 2, 9, 16)
        for head in range(2):
            query = queries[block][0, 16 * head : 16 * (head + 1)]
            powers = [math.exp(query @ key.numpy() / math.sqrt(16)) for key in keys[0, head]]
            attended = own.attentions[block][0, head, 0, -9:].numpy()
            np.testing.assert_allclose(np.array(powers) / sum(powers), attended / attended.sum(), atol=1e-5)


@pytest.mark.parametrize("name", ["dinov2", "registers", "clip", "vit"])
def test_the_last_blocks_class_attention_is_one_softmax_without_heads(saved, name):
    this = encoder(saved, name, layer=-2)
    pixels = this.preprocess(IMAGE)[None]
    got = this(pixels, attention=True)
    queries, keys = own_projections(saved, name, pixels)
    powers = [math.exp(queries[-1][0] @ key / math.sqrt(32)) for key in keys[-1]]
    # The class token, and registers, keep their share.
    expected = np.array(powers[-9:]) / sum(powers)
    np.testing.assert_allclose(got.last_cls_attention[0].numpy(), expected, atol=1e-5)
    assert expected.sum() < 0.99


def test_an_encoder_without_class_token_gives_keys_alone(saved):
    out = encoder(saved, "siglip")(torch.zeros(1, 3, 42, 42), attention=True)
    assert out.cls_attention is None and out.last_cls_attention is None
    assert out.keys.shape == out.last_keys.shape == (1, 2, 9, 16)


def test_keys_turned_by_position_are_refused(saved):
    with pytest.raises(ValueError, match="DINOv3ViTModel turns its attention keys by position"):
        encoder(saved, "dinov3")(torch.zeros(1, 3, 42, 42), attention=True)


@pytest.mark.parametrize("name", ["dinov2", "registers", "clip", "siglip"])
def test_another_resolution_than_trained_at_has_its_own_grid(saved, name):
    config = VisionConfig(kind=SAVED[name][0], source=name, image_size=70, patch_size=14)
    out = load_vision(config, saved(name))(torch.zeros(1, 3, 70, 70))
    assert out.patches.shape == (1, 25, 32)


def test_pixels_are_normalised_as_each_model_was_trained(saved):
    grey = np.full((42, 42, 3), 128, np.uint8)
    # published means and deviations: ImageNet's, CLIP's, and one half
    for name, mean, std in (("dinov2", 0.485, 0.229), ("clip", 0.48145466, 0.26862954), ("vit", 0.5, 0.5)):
        value = encoder(saved, name).preprocess(grey)[0, 0, 0].item()
        assert value == pytest.approx((128 / 255 - mean) / std, abs=1e-5)


def test_a_photograph_is_squashed_and_keeps_its_border(saved):
    image = np.zeros((40, 80, 3), np.uint8)
    image[:, :20, 0] = 255
    seen = encoder(saved, "dinov2").preprocess(image)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    colours = seen.permute(1, 2, 0) * std + mean
    assert colours.shape == (42, 42, 3)
    # a quarter of 42 columns; the two nearest to its edge on either side are mixed
    for columns, colour in ((slice(0, 8), (1.0, 0.0, 0.0)), (slice(13, 42), (0.0, 0.0, 0.0))):
        part = colours[:, columns]
        torch.testing.assert_close(part, torch.tensor(colour).expand_as(part), atol=1e-5, rtol=0)


def test_missing_weights_and_missing_normalisation_are_refused(saved, tmp_path):
    model = transformers.Dinov2Model(transformers.Dinov2Config(**SIZES))
    state = {k: v for k, v in model.state_dict().items() if "layer.1.attention" not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    config = VisionConfig(source="x", image_size=42, patch_size=14)
    with pytest.raises(ValueError, match="does not hold a whole Dinov2Model: .* weights missing"):
        load_vision(config, tmp_path)
    auto = VisionConfig(kind="auto", source="x", image_size=42, patch_size=14)
    model.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"no preprocessor_config.json"):
        load_vision(auto, tmp_path)
    with pytest.raises(ValueError, match="patch size 14, not 16"):
        load_vision(VisionConfig(source="x", image_size=48, patch_size=16), tmp_path)
