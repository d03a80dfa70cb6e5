"""GLaMM and LISA checkpoints, tiny, with the key names of the real ones; official SAM files."""

import json

import pytest
import torch
from saved_glamm import WIDTH, converted, save_glamm, tiny_sam, write

from harness.cli import app
from harness.config import LanguageConfig
from harness.files import sha256_file
from harness.models.glamm import convert_checkpoint
from harness.models.language import SEG, load_language
from harness.models.sam import load_sam
from harness.tensors import load_tensors
from harness.training.assembly import RunData, build_model


@pytest.fixture(scope="module")
def original(tmp_path_factory):
    folder = tmp_path_factory.mktemp("glamm")
    return folder, save_glamm(folder)


def test_every_tensor_arrives_where_the_harness_loads_it(original, tmp_path):
    report = converted(original, tmp_path)
    _, state = original
    assert not report.unknown and not report.missing and not report.mismatched
    assert report.used.keys() | report.left.keys() == state.keys()
    assert len(report.left) == 3 and all(report.left.values())
    language, tokenizer = load_language(LanguageConfig(), tmp_path / "language", torch.float16)
    for name, tensor in language.state_dict().items():
        assert torch.equal(tensor, state[name]), name
    assert tokenizer.convert_tokens_to_ids(SEG) < language.config.vocab_size
    sam = load_tensors(tmp_path / "sam.safetensors", "")
    tiny_sam().load_state_dict(sam)
    assert all(torch.equal(v, state[f"model.grounding_encoder.{k}"]) for k, v in sam.items())
    start = load_tensors(tmp_path / "start.safetensors", "")
    assert torch.equal(start["seg_head.2.weight"], state["model.text_hidden_fcs.0.2.weight"])
    assert torch.equal(start["projector.0.bias"], state["model.mm_projector.0.bias"])
    assert json.loads((tmp_path / "report.json").read_text())["counts"]["used"] == {
        "language": len(language.state_dict()),
        "sam": len(sam),
        "start": 8,
    }


def test_lisas_name_for_sam_is_known(original, tmp_path):
    folder, state = original
    renamed = {k.replace("grounding_encoder", "visual_model"): v for k, v in state.items()}
    report = converted((folder, renamed), tmp_path)
    assert not report.missing and (tmp_path / "sam.safetensors").exists()


def test_lisas_one_linear_layer_is_its_projector(original, tmp_path):
    folder, state = original
    lisa = {k: v for k, v in state.items() if "mm_projector" not in k}
    lisa |= {
        "model.mm_projector.weight": torch.randn(WIDTH, 24),
        "model.mm_projector.bias": torch.ones(WIDTH),
    }
    report = converted((folder, lisa), tmp_path)
    assert not report.missing and not report.unknown
    start = load_tensors(tmp_path / "start.safetensors", "")
    assert torch.equal(start["projector.weight"], lisa["model.mm_projector.weight"])
    assert {name for name in start if name.startswith("projector")} == {"projector.weight", "projector.bias"}
    del lisa["model.mm_projector.bias"]
    with pytest.raises(ValueError, match=r"1 missing.*start:projector.bias"):
        converted((folder, lisa), tmp_path / "half")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"model.layers.1.mlp.up_proj.weight": None},
            "1 missing.*language:model.layers.1.mlp.up_proj.weight",
        ),
        ({"model.text_hidden_fcs.0.2.bias": None}, "1 missing.*start:seg_head.2.bias"),
        ({"model.layers.0.self_attn.q_proj.lora_A.weight": torch.zeros(2)}, "1 keys unknown.*lora_A"),
        ({"model.mm_projector.4.weight": torch.zeros(2)}, "1 keys unknown.*mm_projector.4"),
        ({"model.norm.weight": torch.zeros(WIDTH + 1)}, "1 of another shape.*model.norm.weight"),
    ],
)
def test_nothing_is_loaded_loosely(original, tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        converted(original, tmp_path, **changes)
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]


def test_a_pickle_that_is_code_is_not_run(original, tmp_path):
    folder, _ = original
    write(folder, {}, parts=1)

    class Code:
        def __reduce__(self):
            return (open, (str(tmp_path / "ran"), "w"))

    torch.save({"model.norm.weight": Code()}, next(folder.glob("pytorch_model*")))
    with pytest.raises(Exception, match="weights_only|Weights only"):
        convert_checkpoint(folder, tmp_path / "out", tiny_sam())
    assert not (tmp_path / "ran").exists()


def test_the_command_refuses_a_folder_without_weights(original, tmp_path):
    folder, _ = original
    (tmp_path / "config.json").write_text((folder / "config.json").read_text())
    with pytest.raises(FileNotFoundError, match="holds neither"):
        app(["weights", "convert", str(tmp_path), str(tmp_path / "out"), "--sam", "vit_b"])


def test_a_run_starts_from_the_converted_head_and_where_asked_the_projector(study, tmp_path):
    from harness.tensors import save_tensors

    shapes = {"seg_head": ((32, 32), (32, 32)), "projector": ((32, 32), (32, 32))}
    start = {}
    for part, (first, last) in shapes.items():
        for layer, shape in ((0, first), (2, last)):
            start[f"{part}.{layer}.weight"] = torch.randn(shape)
            start[f"{part}.{layer}.bias"] = torch.randn(shape[0])
    save_tensors(tmp_path / "start.safetensors", start)
    changes = {"models.start": str(tmp_path / "start.safetensors")}
    rows = ["mlp", {"name": "mlp", "variant": "glamm", "set": {"models.start_projector": True}}, "linear"]
    this = study(rows, changes)
    this.features()
    fresh, from_file, _ = (
        build_model(this.plan, r, RunData(this.plan, r).vision_width) for r in this.plan.trained
    )
    for model in (fresh, from_file):
        assert torch.equal(model.seg_head[0].weight, start["seg_head.0.weight"])
        assert torch.equal(model.seg_head[2].bias, start["seg_head.2.bias"])
    assert torch.equal(from_file.projector.mlp[2].weight, start["projector.2.weight"])
    assert not torch.equal(fresh.projector.mlp[2].weight, start["projector.2.weight"])
    unfit = study([{"name": "linear", "set": {"models.start_projector": True}}, "mlp"], changes)
    with pytest.raises(ValueError, match=r"start.safetensors: projector holds tensors of shapes"):
        build_model(unfit.plan, unfit.run, RunData(unfit.plan, unfit.run).vision_width)


def test_a_projector_starts_from_the_published_weights_that_the_study_names(study, tmp_path):
    from transformers import BertConfig, BertModel

    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    bert = BertModel(BertConfig(**sizes, vocab_size=30), add_pooling_layer=False)
    bert.save_pretrained(tmp_path / "bert")
    row = {"name": "q_former", "budget": 9, "config": {"width": 16, "layers": 2, "head_width": 4}}
    this = study([row, "mlp"], {"models.projector_weights": {"q_former": str(tmp_path / "bert")}})
    this.features()
    model, other = (
        build_model(this.plan, run, RunData(this.plan, run).vision_width) for run in this.plan.trained
    )
    built = model.projector.layers[1].hidden.weight
    assert torch.equal(built, bert.encoder.layer[1].intermediate.dense.weight)
    assert other.projector.name == "mlp"


def test_an_official_sam_checkpoint_is_checked_and_read(tmp_path, monkeypatch):
    """The registry's own builder at a tiny size: the file, its hash and its keys are what is proven."""
    monkeypatch.setattr("harness.models.sam.sam_model_registry", {"vit_b": lambda checkpoint: tiny_sam()})
    torch.manual_seed(0)
    sam = tiny_sam()
    path = tmp_path / "sam_vit_b.pth"
    torch.save(sam.state_dict(), path)
    loaded = load_sam(path, "vit_b", sha256_file(path))
    assert all(torch.equal(v, loaded.state_dict()[k]) for k, v in sam.state_dict().items())
    assert not any(p.requires_grad for p in loaded.parameters())
    with pytest.raises(ValueError, match="sha256 differs from the expected 000000000000"):
        load_sam(path, "vit_b", "0" * 64)
    torch.save({k: v for k, v in sam.state_dict().items() if "neck" not in k}, path)
    with pytest.raises(ValueError, match="is no vit_b SAM: 6 keys missing"):
        load_sam(path, "vit_b")
    with pytest.raises(ValueError, match=r"is a file, a tiny SAM is a folder; name its kind: vit_b"):
        load_sam(path)
    torch.save(sam.state_dict() | {"mask_decoder.iou_token.weight": torch.zeros(1, 3)}, path)
    with pytest.raises(
        ValueError, match="0 keys missing, 0 unexpected, 1 of another shape; name its own kind"
    ):
        load_sam(path, "vit_b")
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(ValueError, match="cut short, or no checkpoint"):
        load_sam(path, "vit_b")
