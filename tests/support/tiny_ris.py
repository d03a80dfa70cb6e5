"""An assembled model of random tiny parts, and images and expressions for it."""

import torch
from torch import nn

from harness.config import LanguageConfig, ProtocolConfig
from harness.models.language import Template, load_language
from harness.models.ris import RISModel
from harness.models.sam import TinySamSize, build_tiny_sam
from harness.projector import ImageFeatures, Interface, Projector, VisualTokens


class Ragged(Projector):
    """As many tokens as the first patch value says."""

    name = "ragged_for_tests"

    def __init__(self, interface, config=None):
        super().__init__(interface, config)
        self.linear = nn.Linear(interface.vision_width, interface.language_width)

    def forward(self, image, *, budget=None, generator=None):
        keep = [3 + i % 4 for i in range(len(image.patches))]
        return VisualTokens.ragged([self.linear(p[:k]) for p, k in zip(image.patches, keep, strict=True)])


def make_model(language_dir, dtype=torch.float32, **options):
    config = LanguageConfig(source=str(language_dir), lora_dropout=0.0, **options)
    language, tokenizer = load_language(config, language_dir, dtype)
    torch.manual_seed(1)
    sam = build_tiny_sam(TinySamSize(image_size=32, width=16, depth=1, heads=2, prompt_width=16))
    projector = Ragged(Interface(12, 32, (4, 4)))
    template = Template.parse(ProtocolConfig(), tokenizer)
    return RISModel(projector, language, template, sam, config).eval()


def features(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (
        ImageFeatures(torch.randn(count, 16, 12, generator=generator), (4, 4)),
        torch.randn(count, 16, 4, 4, generator=generator),
    )


EXPRESSIONS = [["the red cup", "left star"], ["blue cup on the right"], ["a", "the", "the left red cup"]]
