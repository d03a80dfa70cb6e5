"""A projector that starts from published weights: Q-Former from a BERT, named in the config."""

from pathlib import Path

import pytest
import torch
from torch.nn import functional as F
from transformers import BertConfig, BertForPreTraining, BertModel

from baselines.q_former import QFormer
from harness.config import ConfigError
from harness.config.resolve import read_study
from harness.planning import triggers
from harness.planning.plan import Plan
from harness.projector import Interface
from harness.running.doctor import examine
from harness.tensors import save_tensors

ROOT = Path(__file__).parents[2]
WIDTH, LAYERS = 16, 3


def bert_config(**changes):
    sizes = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": 4}
    return BertConfig(**sizes | {"intermediate_size": 4 * WIDTH, "vocab_size": 30} | changes)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """As google-bert/bert-base-uncased lies there: with its heads, norms by their old names."""
    folder = tmp_path_factory.mktemp("bert")
    model = BertForPreTraining(bert_config()).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(std=0.5)
    model.save_pretrained(folder)
    old = {"LayerNorm.weight": "LayerNorm.gamma", "LayerNorm.bias": "LayerNorm.beta"}
    tensors = {}
    for name, value in model.state_dict().items():
        for now, before in old.items():
            name = name.replace(now, before)
        tensors[name] = value.clone()
    save_tensors(folder / "model.safetensors", tensors)
    return folder, model.bert


def q_former(**options):
    config = QFormer.Config(**{"width": WIDTH, "layers": LAYERS, "head_width": 4} | options)
    return QFormer(Interface(24, 20, (4, 4), 5), config).eval()


def test_every_layer_answers_as_bert_s(bert):
    folder, theirs = bert
    ours = q_former()
    queries, crossing = ours.queries.clone(), ours.layers[0].cross_attention.q_proj_weight.clone()
    ours.start_from(str(folder))
    x = torch.randn(2, 5, WIDTH)
    # the middle layer has no cross-attention: it is a layer of BERT's
    whole = theirs.encoder.layer[1](x)
    whole = whole if isinstance(whole, torch.Tensor) else whole[0]  # older transformers give a tuple
    torch.testing.assert_close(ours.layers[1](x, None), whole, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours.query_norm(x), theirs.embeddings.LayerNorm(x))
    for index in (0, 2):
        layer, other = ours.layers[index], theirs.encoder.layer[index]
        attended = layer.norms[0](x + layer.self_attention(x, x, x, need_weights=False)[0])
        torch.testing.assert_close(attended, other.attention(x)[0], atol=1e-5, rtol=1e-5)
        fed = layer.norms[-1](x + layer.output(F.gelu(layer.hidden(x))))
        torch.testing.assert_close(fed, other.output(other.intermediate(x), x), atol=1e-5, rtol=1e-5)
    assert torch.equal(ours.queries, queries)
    assert torch.equal(ours.layers[0].cross_attention.q_proj_weight, crossing)


@pytest.mark.parametrize(
    "options", [{"layers": 2}, {"width": 8}, {"head_width": 8}], ids=["layers", "width", "heads"]
)
def test_a_bert_of_other_sizes_is_one_sentence_with_both(bert, options):
    with pytest.raises(ValueError, match=rf"3 layers, width {WIDTH}, 4 heads.*this Q-Former .*name another"):
        q_former(**options).start_from(str(bert[0]))


def test_a_bert_without_some_weights_or_as_a_pickle_is_refused(bert, tmp_path):
    BertModel(bert_config()).save_pretrained(tmp_path / "cut")
    kept = {"embeddings.LayerNorm.weight": torch.ones(WIDTH)}
    save_tensors(tmp_path / "cut" / "model.safetensors", kept)
    with pytest.raises(ValueError, match="weights missing"):
        q_former().start_from(str(tmp_path / "cut"))
    pickled = tmp_path / "pickled"
    pickled.mkdir()
    bert_config().save_pretrained(pickled)
    torch.save(BertModel(bert_config()).state_dict(), pickled / "pytorch_model.bin")
    with pytest.raises(OSError):
        q_former().start_from(str(pickled))


def planned(weights, rows=("mlp", {"name": "q_former", "budget": 9})):
    raw = read_study(ROOT / "config/studies/smoke.yaml", ROOT)
    merged = raw.get("set", {}) | {"models.projector_weights": weights}
    return Plan.from_raw({**raw, "rows": list(rows), "reference_row": "mlp", "set": merged}, ROOT)


def test_its_row_alone_hangs_on_them(tmp_path):
    folder = tmp_path / "bert"
    plan = planned({"q_former": str(folder)})
    mlp, other = plan.trained
    assert mlp.models.projector_weights == {}
    assert other.models.projector_weights == {"q_former": str(folder)}
    (told,) = [found for found in examine(plan) if found.check.startswith("q_former: ")]
    assert told.status == "missing" and "models.projector_weights.q_former" in told.mend
    folder.mkdir()
    for name in ("config.json", "model.safetensors"):
        (folder / name).write_text("{}")
    (told,) = [found for found in examine(plan) if found.check.startswith("q_former: ")]
    assert told.status == "ok"

    def asked(plan):
        return [triggers.checkpoint_trigger(plan, run) for run in plan.trained]

    without, before = asked(planned({})), asked(planned({"q_former": str(folder)}))
    assert before[0] == without[0] and before[1] != without[1]
    assert folder / "model.safetensors" in plan.run_inputs(other)
    assert not set(plan.run_inputs(mlp)) & set(folder.iterdir())
    (folder / "model.safetensors").write_text("another")
    after = asked(planned({"q_former": str(folder)}))
    assert after[0] == before[0] and after[1] != before[1]


def test_a_row_may_leave_them_out():
    rows = [
        {"name": "q_former", "budget": 9},
        {
            "name": "q_former",
            "budget": 9,
            "variant": "random",
            "set": {"models.projector_weights.q_former": None},
        },
        "mlp",
    ]
    plan = planned({"q_former": "google-bert/bert-base-uncased"}, rows)
    sources = {run.variant: plan.projector_source(run) for run in plan.trained[:2]}
    assert sources == {"base": "google-bert/bert-base-uncased", "random": None}


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"q_fromer": "x"}, "'q_fromer' is no projector that starts from published weights.*q_former"),
        ({"mlp": "x"}, "'mlp' is no projector that starts"),
        ("x", "maps projectors to weights"),
        ({"q_former": 3}, "projector_weights.q_former"),
    ],
)
def test_a_wrong_name_is_refused_before_anything_runs(weights, said):
    with pytest.raises(ConfigError, match=said):
        planned(weights)


def test_paper_and_small_sizes_start_as_blip_2_does():
    for size in ("paper", "small"):
        plan = Plan.named([ROOT / "config" / f"{size}.yaml", ROOT / "config/studies/main.yaml"])
        sources = {run.projector: plan.projector_source(run) for run in plan.trained}
        assert sources.pop("q_former") == "google-bert/bert-base-uncased"
        assert not any(sources.values())
