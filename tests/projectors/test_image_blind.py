"""The image-blind control: the language model reads another image, SAM's decoder the right one."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from harness import prediction
from harness.config import ProtocolConfig
from harness.plugins.controls import Control, load_control


def test_every_image_takes_the_tokens_of_another_and_gives_its_own_to_one():
    ids = np.array([7, 3, 3, 9, 1, 7])
    read = load_control("image_blind", {}).read_instead(ids, 0)
    assert set(read) == set(read.values()) == {1, 3, 7, 9}
    assert all(image != other for image, other in read.items())
    assert read == load_control("image_blind", {}).read_instead(ids[::-1], 0)


def test_one_image_is_refused():
    with pytest.raises(ValueError, match="evaluate at least two"):
        load_control("image_blind", {}).read_instead(np.array([4, 4]), 0)


def test_other_controls_swap_nothing():
    assert Control().read_instead(np.array([1, 2]), 0) == {}


def test_the_tokens_come_from_the_other_image_and_the_embedding_from_the_right_one():
    """A model whose mask is full where the image read has the higher id than the one SAM sees."""
    asked = {}

    def features(ids, device):
        asked["features"] = ids
        return torch.tensor(ids, dtype=torch.float32)

    def embeddings(ids, device):
        asked["sam"] = ids
        return torch.tensor(ids, dtype=torch.float32)

    class Model(torch.nn.Linear):
        reads_expression = False
        sam = SimpleNamespace(image_encoder=SimpleNamespace(img_size=4))

        def forward(self, tokens, expressions, sam):
            count = [len(group) for group in expressions]
            gap = (tokens - sam).repeat_interleave(torch.tensor(count))
            lengths = torch.ones(len(tokens), dtype=torch.long)
            return gap[:, None, None].expand(-1, 4, 4), None, SimpleNamespace(lengths=lengths), None

    data = SimpleNamespace(features=features, sam_embeddings=embeddings, size=lambda i: (4, 4))
    rows = pd.DataFrame({"image_id": [1, 1, 2], "sentence": ["a", "b", "c"]})
    groups = [group for _, group in rows.groupby("image_id")]
    predict = prediction.predict_batch
    counts, _, _ = predict(Model(1, 1), data, groups, ProtocolConfig(), {1: 2, 2: 1})
    assert asked == {"features": [2, 1], "sam": [1, 2]}
    full, empty = (prediction.encode_mask(np.full((4, 4), value)) for value in (True, False))
    assert counts == [full, full, empty]  # 2 - 1 is above the cut, 1 - 2 is not
    counts, _, _ = predict(Model(1, 1), data, groups, ProtocolConfig())
    assert counts == [empty] * 3
