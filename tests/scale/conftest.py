"""A study of a few synthetic images whose models are random, saved in the formats of the real ones."""

from pathlib import Path

import pytest
import torch
from transformers import Dinov2Config, Dinov2Model, LlamaConfig, LlamaForCausalLM

from harness.config.resolve import read_study
from harness.data.stage import prepare_data
from harness.data.tables import load_tables
from harness.features.cache import feature_stage
from harness.models.sam import TinySamSize, build_tiny_sam, save_tiny_sam
from harness.planning.plan import Plan
from harness.pretraining.models import build_tokenizer

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def weights(tmp_path_factory):
    """Folders ``vision``, ``language`` and ``sam`` of random weights for 96 pixels, patch 8."""
    folder = tmp_path_factory.mktemp("weights")
    torch.manual_seed(0)
    vision = Dinov2Config(
        image_size=96,
        patch_size=8,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        initializer_range=0.2,
    )
    Dinov2Model(vision).save_pretrained(folder / "vision")
    tokenizer = build_tokenizer("the left right red blue cup star of a on . what is".split())
    language = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        initializer_range=0.2,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    LlamaForCausalLM(language).save_pretrained(folder / "language")
    tokenizer.save_pretrained(folder / "language")
    size = TinySamSize(width=32, depth=1, heads=2, prompt_width=32)
    save_tiny_sam(build_tiny_sam(size), size, folder / "sam")
    return folder


class Study:
    """A planned study and what its jobs have written."""

    def __init__(self, folder: Path, weights: Path, rows: list, changes: dict):
        images = dict.fromkeys(("val_images", "testA_images", "testB_images", "test_images"), 2)
        data = {f"data.{k}": v for k, v in {**images, "train_images": 8, "pool_images": 1}.items()}
        sources = {f"models.{part}.source": str(weights / part) for part in ("vision", "language", "sam")}
        steps = {"training.stage1_steps": 3, "training.stage2_steps": 3, "training.log_every": 1}
        steps |= {"training.images_per_step": 4, "training.checkpoint_every": 2}
        steps |= {"models.vision.levels": [], "models.start": None}  # these encoders have two layers
        raw = read_study(ROOT / "config" / "default.yaml", ROOT)
        raw |= {"rows": rows, "effort": "full", "results": str(folder), "superpixels": "slic"}
        self.raw = {**raw, "set": data | sources | steps | changes}
        self.plan = Plan.from_raw(self.raw, ROOT)
        self.run = self.plan.trained[0]

    def prepare(self):
        for run in self.plan.runs.values():
            key = self.plan.keys(run).data
            if not (self.plan.data_dir(key) / "prepared" / "summary.json").exists():
                prepare_data(run.data, self.plan.data_dir(key))
        return self

    @property
    def tables(self):
        return load_tables(self.plan.prepared_dir(self.run))

    def features(self, **options):
        """Write the feature arrays of the first run; their folders by item."""
        folders = {}
        for item in self.plan.keys(self.run).feature_items:
            key = self.plan.keys(self.run).feature(item)
            folders[item] = self.plan.feature_dir(key)
            data = self.plan.data_dir(self.plan.keys(self.run).data)
            model = self.plan.model_source(self.run, "sam" if item == "sam" else "vision")
            options.setdefault("identity", "test")
            feature_stage(item, self.run, data, model, folders[item], **options)
        return folders


@pytest.fixture
def study(tmp_path_factory, weights, shared_results):
    """``study(rows, {delta: value})``: planned, its data prepared."""

    def make(rows=("mlp",), changes=None):
        return Study(shared_results, weights, list(rows), changes or {}).prepare()

    return make


@pytest.fixture(scope="session")
def shared_results(tmp_path_factory):
    return tmp_path_factory.mktemp("results")
