"""What is chosen by likeness or position is the same under autocast as in float32."""

import pytest
import torch
from torch.nn import functional as F

from baselines.prumerge import merge
from baselines.tome import bipartite_merge
from baselines.visionzip import VisionZip
from harness.precision import without_autocast
from harness.projector import ImageFeatures, Interface, Superpixels
from svp.sspe import CentroidEncoder

SIDE, WIDTH = 24, 64


def smooth_keys():
    """``[1, n, c]``: smooth in space, with a common mean, as keys averaged over heads are."""
    made = torch.Generator().manual_seed(0)
    coarse = F.interpolate(torch.randn(1, WIDTH, 6, 6, generator=made), (SIDE, SIDE), mode="bicubic")
    noise = torch.randn(SIDE * SIDE, WIDTH, generator=made)
    return (0.5 * coarse[0].flatten(1).T + 0.15 * noise + 1.5 * torch.randn(1, WIDTH, generator=made))[None]


def tome(keys):
    ids = torch.eye(SIDE * SIDE)[None]
    merged, sizes = bipartite_merge(ids, keys, torch.ones(1, SIDE * SIDE), 24)
    return merged * sizes[..., None]


def prumerge(keys):
    ids, count = torch.eye(SIDE * SIDE), SIDE * SIDE
    return merge(ids, keys[0], torch.ones(count), torch.arange(0, count, 9), 32)


def visionzip(keys):
    """The anchors' means of one-hot patches say who joined whom."""
    projector = VisionZip(Interface(SIDE * SIDE, 8, (SIDE, SIDE), 64), VisionZip.Config())
    projector.mlp = torch.nn.Identity()
    features = ImageFeatures(
        patches=torch.eye(SIDE * SIDE)[None],
        grid=(SIDE, SIDE),
        cls_attention=torch.linspace(0, 1, SIDE * SIDE)[None],
        keys=keys[:, None],
    )
    return projector(features).embeddings > 0


def centroids(_):
    cells = torch.eye(SIDE * SIDE)
    count = len(cells)
    areas, boxes = torch.full((count,), 1 / count), torch.zeros(count, 4)
    superpixels = Superpixels(cells, cells, boxes, areas, torch.tensor([count]))
    return CentroidEncoder(256)(superpixels, (SIDE, SIDE))


@pytest.mark.parametrize("choose", [tome, prumerge, visionzip, centroids])
def test_choices_are_those_of_float32(choose):
    keys = smooth_keys()
    expected = choose(keys)
    with torch.autocast("cpu", torch.bfloat16):
        found = choose(keys)
    assert torch.equal(found, expected)


def test_around_it_autocast_goes_on():
    x = torch.ones(2, 2)
    with torch.autocast("cpu", torch.bfloat16):
        with without_autocast(x):
            assert (x @ x).dtype == torch.float32
        assert (x @ x).dtype == torch.bfloat16
