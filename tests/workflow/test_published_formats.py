"""Whole studies on files in the formats of the published weights, and, where at hand, on real photographs.

The files are tiny and random, so nothing is learnt; that all of them go through every stage is what is shown.
SAM is the one exception: its registry knows three sizes, none of them tiny, so its official file is read in
tests/scale alone, and here a small one of the same classes stands in.
"""

import os
import shutil
from pathlib import Path

import pandas as pd
import pytest
import transformers
import yaml
from checkout import ROOT, Checkout
from saved_glamm import VISION, converted, save_glamm, tiny_sam
from saved_language import SAVERS
from saved_vision import save_vision

from harness.models.sam import TinySamSize, save_tiny_sam

pytestmark = pytest.mark.workflow

# Row: vision weights, their kind, language weights, protocol; of each every one that config/parts has.
ROWS = {
    "dinov2": ("dinov2", "dinov2", "vicuna", {"protocol": "plain"}),
    "clip": ("clip", "clip", "llava", {"protocol": "lisa"}),
    "siglip": ("siglip", "siglip", "qwen2.5", {"protocol": "glamm", "protocol.name": "glamm-3sent"}),
    "siglip2": ("siglip2", "siglip", "smollm2", {"protocol": "full", "protocol.decode": "generate"}),
    "glamm": ("clip-glamm", "clip", "glamm/language", {"protocol": "glamm"}),
}


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A folder of every kind of weights; GLaMM's are converted as a user would."""
    folder = tmp_path_factory.mktemp("weights")
    for name in ("dinov2", "clip", "siglip", "siglip2"):
        save_vision(name, folder / name)
    for name, save in SAVERS.items():
        save(folder / name)
    if tokenizers := os.environ.get("RIS_TOKENIZERS"):  # Vicuna's own
        for name in ("tokenizer.json", "tokenizer_config.json"):
            (folder / "vicuna" / name).unlink()
        shutil.copy(Path(tokenizers) / "llama" / "tokenizer.model", folder / "vicuna")
        real = transformers.LlamaTokenizer.from_pretrained(folder / "vicuna")
        real.save_pretrained(folder / "vicuna")
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
        config = transformers.LlamaConfig(vocab_size=len(real), **sizes)
        transformers.LlamaForCausalLM(config).save_pretrained(folder / "vicuna")
    hub = folder / "hub"
    hub.mkdir()
    converted((hub, save_glamm(hub)), folder / "glamm")
    text = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**text, "hidden_size": VISION, "image_size": 42, "patch_size": 14, "num_hidden_layers": 2}
    config = transformers.CLIPConfig(text_config={**text, "vocab_size": 64}, vision_config=vision)
    transformers.CLIPModel(config).save_pretrained(folder / "clip-glamm")
    shutil.copy(folder / "clip" / "preprocessor_config.json", folder / "clip-glamm")
    sam = tiny_sam()
    save_tiny_sam(
        sam, TinySamSize(image_size=32, width=16, depth=1, heads=2, prompt_width=16), folder / "sam"
    )
    return folder


def models(weights, vision, kind, language):
    return {
        "models.vision": kind,
        "models.vision.source": str(weights / vision),
        "models.vision.image_size": 42,
        "models.vision.patch_size": 14,
        "models.vision.levels": [],
        "models.language.source": str(weights / language),
    }


def study(weights):
    """`config/paper.yaml` with these weights, on the photographs at hand or on scenes, two steps a stage."""
    rows = []
    for name, (vision, kind, language, protocol) in ROWS.items():
        changes = {**models(weights, vision, kind, language), **protocol}
        if name == "glamm":
            start = str(weights / "glamm" / "start.safetensors")
            changes |= {"models.start": start, "models.start_projector": True}
        rows.append({"name": "mlp", "variant": name, "set": changes})
    value = yaml.safe_load((ROOT / "config/paper.yaml").read_text())
    real = os.environ.get("RIS_REAL_DATA")
    value |= {"study": "formats", "data": "real_sample" if real else "smoke", "superpixels": "slic"}
    value |= {"bootstrap_resamples": 50}
    if real:
        value["data_root"] = real
    value["rows"] = [*rows, {"name": "svp", "set": {"superpixels.options.segments": 12}}]
    value["set"] = {
        **models(weights, "dinov2", "dinov2", "llava"),
        "models.gpu": False,
        "models.sam.kind": "tiny",
        "models.sam.source": str(weights / "sam"),
        "models.sam.sha256": None,
        "training.processes": 1,
        "training.stage1_steps": 2,
        "training.stage2_steps": 2,
        "training.images_per_step": 4,
        "training.images_per_forward": 4,
    }
    return value


def test_every_format_and_protocol_goes_through_the_whole_dag(weights, tmp_path):
    checkout = Checkout.at(tmp_path / "repo")
    (checkout.path / "config/studies/formats.yaml").write_text(yaml.safe_dump(study(weights)))
    done = checkout.run("harness.cli", "run", "config/studies/formats.yaml")
    assert done.returncode == 0, done.stdout + done.stderr
    results = checkout.path / "results"
    expressions = pd.read_parquet(next((results / "shared/data").glob("*/prepared/expressions.parquet")))
    asked = len(expressions[expressions["split"] != "train"])
    told = {p.stem: pd.read_parquet(p) for p in (results / "paper-formats/predictions").glob("*.parquet")}
    assert set(told) == {*(f"mlp.{name}.auto.s0" for name in ROWS), "svp.base.auto.s0"}
    for run, rows in told.items():
        if ".siglip." in run:  # GLaMM's evaluation draws
            assert set(rows["protocol"]) == {"glamm-3sent.s0"}
            assert 0 < len(rows) <= asked and rows.groupby(["dataset", "split", "image_id"]).size().max() <= 3
        else:
            assert len(rows) == asked
        assert set(rows["visual_tokens"]) == {9} or run.startswith("svp")
        assert rows["seg_emitted"].all() or ".siglip2." in run
    main = (results / "paper-formats/tables/main.md").read_text()
    assert all(f"mlp ({name})" in main for name in ROWS)
    assert "glamm-3sent" in main and (results / "paper-formats/figures/overlays.png").exists()
