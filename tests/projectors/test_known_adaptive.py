"""Projectors that choose or merge patches, against numbers worked out from each description."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from answers import HEADS, WIDTH, attend, check, gelu, image, linear, make, mlp, norm, run, sincos


def cosine(a, b):
    return float(a @ b / math.sqrt((a @ a) * (b @ b)))


def prumerge(x, keys, share, kept, neighbours):
    out = []
    for i in kept:
        others = sorted((j for j in range(len(x)) if j != i), key=lambda j: -cosine(keys[i], keys[j]))
        out.append(x[i] + sum(share[j] * x[j] for j in others[:neighbours]))
    out.append(sum((share[j] * x[j] for j in range(len(x)) if j not in kept), np.zeros(x.shape[-1])))
    return np.array(out)


def whole_keys(by_head):
    """Keys ``[heads, n, c]`` as the encoder's projection gives them, one head's channels behind another's."""
    return np.array([[c for head in by_head for c in head[i]] for i in range(by_head.shape[1])])


def by_attention(share):
    return sorted(range(len(share)), key=lambda j: -share[j])


def attention_with_outliers(outliers, patches=36):
    """Evenly rising attention with peaks at the given patches; a fifth is the class token's own."""
    attention = 1 + torch.arange(patches, dtype=torch.float64) / patches
    for rank, place in enumerate(outliers):
        attention[place] = 10 - rank
    return 0.8 * attention / attention.sum()


# By default the release's share, 32 of 576 patches: two of 36.
@pytest.mark.parametrize(("options", "neighbours"), [({"neighbours": 5}, 5), ({}, 2)])
def test_prumerge_keeps_the_outliers(options, neighbours):
    outliers = [7, 30], [3, 20, 11]
    attention = torch.stack([attention_with_outliers(places) for places in outliers])
    projector, state = make("prumerge", (6, 6), **options)
    features = image((6, 6), last_cls_attention=attention)
    expected = []
    for x, keys, share, kept in zip(
        features.patches.numpy(), features.last_keys.numpy(), attention.numpy(), outliers, strict=True
    ):
        expected.append(mlp(prumerge(x, whole_keys(keys), share, kept, neighbours), state))
    check(run(projector, features), expected, 1e-5)


def test_prumerge_at_a_budget_keeps_the_most_attended():
    projector, state = make("prumerge", budget=5, neighbours=3)
    features = image()
    expected = []
    for x, keys, share in zip(
        features.patches.numpy(), features.last_keys.numpy(), features.last_cls_attention.numpy(), strict=True
    ):
        expected.append(mlp(prumerge(x, whole_keys(keys), share, by_attention(share)[:4], 3), state))
    check(run(projector, features), expected, 1e-5)


def test_prumerge_plus_adds_evenly_spaced_patches():
    outliers = [7, 30, 18]
    attention = attention_with_outliers(outliers)[None]
    projector, state = make("prumerge_plus", (6, 6), neighbours=4)
    features = image((6, 6), batch=1, last_cls_attention=attention)
    stride = int(int(1 / (3 / 36)) / 3)
    kept = outliers + [i for i in range(0, 35, stride) if i not in outliers]
    assert len(kept) > 3
    keys = whole_keys(features.last_keys[0].numpy())
    merged = prumerge(features.patches[0].numpy(), keys, attention[0].numpy(), kept, 4)
    check(run(projector, features), [mlp(merged, state)], 1e-5)


def test_prumerge_plus_at_a_budget_is_half_attended_half_spaced():
    attention = attention_with_outliers([7, 30, 18])[None]
    projector, _ = make("prumerge_plus", (6, 6))
    kept = projector.select(attention[0], 7).tolist()
    assert kept[:3] == [7, 30, 18]
    assert len(set(kept)) == 6 and kept[3:] == sorted(kept[3:])
    gaps = np.diff([-1, *kept[3:], 36])
    assert gaps.min() >= 4 and max(gaps[1:-1]) <= 13


def test_visionzip():
    projector, state = make("visionzip", budget=7, contextual_share=3 / 7)
    features = image()
    expected = []
    for x, keys, share in zip(
        features.patches.numpy(), features.keys.numpy(), features.cls_attention.numpy(), strict=True
    ):
        dominant = sorted(by_attention(share)[:4])
        rest = [j for j in range(16) if j not in dominant]
        anchors = [rest[0], rest[4], rest[8]]
        metric = sum(keys[head] for head in range(HEADS)) / HEADS
        merged = {anchor: [] for anchor in anchors}
        for j in rest:
            if j not in anchors:
                merged[max(anchors, key=lambda a: cosine(metric[j], metric[a]))].append(x[j])  # noqa: B023
        contextual = [x[a] + (np.mean(merged[a], 0) if merged[a] else 0) for a in anchors]
        expected.append(mlp(np.array([x[j] for j in dominant] + contextual), state))
    check(run(projector, features), expected, 1e-5)


def dpc_knn(x, neighbours, threshold, fallback):
    """Labels by density-peak clustering, row by row."""
    n = len(x)
    distance = [[math.dist(a, b) / math.sqrt(x.shape[-1]) for b in x] for a in x]
    density = [math.exp(-sum(d * d for d in sorted(row)[:neighbours]) / neighbours) for row in distance]
    farthest = max(max(row) for row in distance)
    score = []
    for i in range(n):
        higher = [distance[i][j] for j in range(n) if density[j] > density[i]]
        score.append(density[i] * (min(higher) if higher else farthest))
    centres = [i for i in range(n) if score[i] > threshold]
    if not centres:
        centres = sorted(sorted(range(n), key=lambda i: -score[i])[:fallback])
    labels = [min(range(len(centres)), key=lambda c: distance[centres[c]][i]) for i in range(n)]
    for rank, centre in enumerate(centres):
        labels[centre] = rank
    return np.array(labels)


def cluster_encoder(x, state, key, apart, heads=2):
    for index in range(2):
        y = norm(x, state, f"{key}.attention_norm")
        x = x + attend(y, y, y, state, f"{key}.layers.{index}", heads, apart)
    y = gelu(linear(norm(x, state, f"{key}.mlp_norm"), state, f"{key}.hidden"))
    return x + linear(y, state, f"{key}.output")


@pytest.mark.parametrize("threshold", [0.5, 1e6])
def test_setok(threshold):
    projector, state = make("setok", (6, 6), threshold=threshold)
    features = image((6, 6))
    # Three groups of patches, so that there is something to find.
    centres = 2 * torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    features = features.with_patches(0.3 * features.patches + centres[torch.arange(36) % 3])
    expected = []
    for patches in features.patches.numpy():
        x = patches + sincos((6, 6), WIDTH)
        labels = dpc_knn(x, 4, threshold, 4)
        encoded = cluster_encoder(x, state, "within", labels[:, None] != labels)
        means = np.array([encoded[labels == label].mean(0) for label in range(labels.max() + 1)])
        expected.append(linear(cluster_encoder(means, state, "between", None), state, "output"))
    assert threshold > 1 or all(len(tokens) != 4 for tokens in expected)
    check(run(projector, features), expected, 1e-4)
