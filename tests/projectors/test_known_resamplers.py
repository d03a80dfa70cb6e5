"""Query resamplers against numbers worked out from each description, or the model of transformers."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from answers import LANGUAGE, WIDTH, attend, check, cubic_resize, image, linear, make, norm, run, silu, sincos


@pytest.mark.parametrize("budget", [16, 9])
@pytest.mark.parametrize("output_projection", [False, True])
def test_qwen_resampler(budget, output_projection):
    projector, state = make(
        "qwen_resampler", budget=budget, head_width=4, output_projection=output_projection
    )
    side = math.isqrt(budget)
    table = sincos((side, side), LANGUAGE)
    expected = []
    for x in image().patches.numpy():
        values = norm(linear(x, state, "input"), state, "input_norm", 1e-6)
        keys = values + cubic_resize(table, (side, side), (4, 4))
        queries = norm(state["queries"], state, "query_norm", 1e-6) + table
        out = attend(queries, keys, values, state, "attention", LANGUAGE // 4)
        if output_projection:
            out = linear(norm(out, state, "output.0", 1e-6), state, "output.1")
        expected.append(out)
    check(run(projector, image()), expected, 1e-5)


def test_mqt():
    projector, state = make("mqt", (6, 6), head_width=4)
    table = sincos((4, 4), WIDTH)
    expected = []
    for x in image((6, 6)).patches.numpy():
        queries = norm(state["queries"] + table, state, "query_norm", 1e-6)
        keys = norm(cubic_resize(table, (4, 4), (6, 6)), state, "key_norm", 1e-6)
        values = norm(x, state, "value_norm", 1e-6)
        out = attend(queries, keys, values, state, "attention", 2)
        expected.append(out @ state["output.weight"].T)
    check(run(projector, image((6, 6))), expected, 1e-5)
    check(run(projector, image((6, 6)), budget=5), [tokens[:5] for tokens in expected], 1e-5)


def test_mqt_draws_even_counts_in_the_second_stage():
    projector, _ = make("mqt", (6, 6))
    generator = torch.Generator().manual_seed(0)
    projector.stage = 1
    assert projector.training_budgets(0, generator) == [16]
    projector.stage, projector.aligning = 2, True
    assert projector.training_budgets(0, generator) == [16]
    projector.aligning = False
    drawn = [projector.training_budgets(step, generator)[0] for step in range(400)]
    assert set(drawn) == set(range(2, 17, 2))
    # 400 draws of 8: 50 each, standard deviation 6.6.
    assert all(20 < drawn.count(count) < 80 for count in set(drawn))


def test_honeybee_resampler():
    projector, state = make("honeybee_resampler", budget=3, blocks=2, head_width=4)
    expected = []
    for x in image().patches.numpy():
        features, queries = linear(x, state, "input"), state["queries"][0]
        for index in range(2):
            key = f"blocks.{index}"
            queries = norm(queries, state, f"{key}.query_norm")
            both = np.concatenate([queries, norm(features, state, f"{key}.key_norm")])
            queries = queries + attend(queries, both, both, state, f"{key}.attention", 2)
            normed = norm(queries, state, f"{key}.norm")
            gated = silu(linear(normed, state, f"{key}.gate")) * linear(normed, state, f"{key}.up")
            queries = queries + linear(norm(gated, state, f"{key}.inner_norm", 1e-6), state, f"{key}.down")
        expected.append(linear(queries, state, "output"))
    check(run(projector, image()), expected)


def test_q_former_is_the_one_of_transformers():
    transformers = pytest.importorskip("transformers")
    projector, state = make("q_former", budget=3, layers=3, head_width=4)
    config = transformers.Blip2QFormerConfig(
        hidden_size=WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        intermediate_size=4 * WIDTH,
        encoder_hidden_size=WIDTH,
        cross_attention_frequency=2,
        use_qformer_text_input=False,
    )
    model = transformers.Blip2QFormerModel(config).double().eval()
    theirs = {f"layernorm.{k}": state[f"query_norm.{k}"] for k in ("weight", "bias")}
    for index in range(3):
        ours, layer = f"layers.{index}", f"encoder.layer.{index}"
        attentions = [("self_attention", "attention", 0)]
        if index % 2 == 0:
            attentions.append(("cross_attention", "crossattention", 1))
        for mine, other, place in attentions:
            key = f"{ours}.{mine}"
            weights = (
                np.split(state[f"{key}.in_proj_weight"], 3)
                if f"{key}.in_proj_weight" in state
                else [state[f"{key}.{part}_proj_weight"] for part in "qkv"]
            )
            biases = np.split(state[f"{key}.in_proj_bias"], 3)
            for part, weight, bias in zip(("query", "key", "value"), weights, biases, strict=True):
                theirs[f"{layer}.{other}.attention.{part}.weight"] = weight
                theirs[f"{layer}.{other}.attention.{part}.bias"] = bias
            for kind in ("weight", "bias"):
                theirs[f"{layer}.{other}.output.dense.{kind}"] = state[f"{key}.out_proj.{kind}"]
                theirs[f"{layer}.{other}.output.LayerNorm.{kind}"] = state[f"{ours}.norms.{place}.{kind}"]
        last = 1 + (index % 2 == 0)
        for kind in ("weight", "bias"):
            theirs[f"{layer}.intermediate_query.dense.{kind}"] = state[f"{ours}.hidden.{kind}"]
            theirs[f"{layer}.output_query.dense.{kind}"] = state[f"{ours}.output.{kind}"]
            theirs[f"{layer}.output_query.LayerNorm.{kind}"] = state[f"{ours}.norms.{last}.{kind}"]
    model.load_state_dict({key: torch.tensor(value) for key, value in theirs.items()})
    features = torch.tensor(norm(image().patches.numpy(), state, "vision_norm"))
    queries = torch.tensor(state["queries"]).expand(2, -1, -1)
    with torch.no_grad():
        out = model(query_embeds=queries, encoder_hidden_states=features).last_hidden_state.numpy()
    check(run(projector, image()), linear(out, state, "output"))
