"""Trained controls against numbers worked out from each description."""

from __future__ import annotations

import numpy as np
import torch
from answers import adaptive_mean, check, image, make, mlp, run


def test_random_keep_keeps_raster_order_and_every_patch_alike():
    projector, state = make("random_keep", budget=5)
    features = image()
    dense = mlp(features.patches.numpy(), state)
    generator = torch.Generator().manual_seed(0)
    seen = np.zeros(16)
    for _ in range(400):
        tokens = run(projector, features, generator=generator)
        places = [int(np.abs(dense[0] - token).sum(-1).argmin()) for token in tokens[0]]
        assert places == sorted(set(places)) and len(places) == 5
        check(tokens, dense[:, places])
        seen[places] += 1
    # 400 draws of 5 in 16: 125 each, standard deviation 9.3.
    assert seen.min() > 85 and seen.max() < 165


def test_downsample_takes_the_patch_at_the_centre_of_a_cell():
    projector, state = make("downsample", (6, 6), 4)
    places = [7, 10, 25, 28]
    check(run(projector, image((6, 6))), mlp(image((6, 6)).patches.numpy()[:, places], state))


def test_global_token_is_the_mean_patch():
    projector, state = make("global_token")
    check(run(projector, image()), mlp(image().patches.numpy().mean(1, keepdims=True), state))


def test_grid_regions_add_the_box():
    projector, state = make("grid_regions", (4, 6), 6)
    boxes = [[x / 3, y / 2, (x + 1) / 3, (y + 1) / 2] for y in range(2) for x in range(3)]
    expected = [
        mlp(adaptive_mean(x, (4, 6), (2, 3)), state) + mlp(np.array(boxes), state, "position")
        for x in image((4, 6)).patches.numpy()
    ]
    check(run(projector, image((4, 6))), expected, 1e-6)
