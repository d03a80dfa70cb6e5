"""A projector that reads the expression: it keeps the patches that answer to it, as many as it has tokens."""

from torch import nn

from harness.projector import ImageFeatures, Projector, VisualTokens


class ExpressionPool(Projector):
    """Patches scored against the mean of the expression's tokens; two more than it has tokens stay."""

    name = "expression_pool"
    reference = "a test's own"
    licence = "Apache-2.0"
    needs = ("expression",)

    def __init__(self, interface, config=None):
        super().__init__(interface, config)
        self.query = nn.Linear(interface.language_width, interface.vision_width)
        self.mlp = nn.Linear(interface.vision_width, interface.language_width)

    def forward(self, image: ImageFeatures, *, budget=None, generator=None) -> VisualTokens:
        query = self.query(image.expressions.mean())
        scores = (image.patches @ query[:, :, None])[..., 0]
        told = []
        for patches, score, words in zip(
            image.patches, scores, image.expressions.lengths.tolist(), strict=True
        ):
            kept = score.topk(words + 2).indices.sort().values
            told.append(self.mlp(patches[kept]) * score[kept, None].sigmoid())
        return VisualTokens.ragged(told)
