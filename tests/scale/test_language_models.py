"""Language models and tokenizers in the formats of the real ones, random and tiny; every prompt template."""

import os
import shutil
from pathlib import Path

import pytest
import sentencepiece
import torch
import transformers
import yaml
from saved_language import SAVERS

from harness.config import LanguageConfig, ProtocolConfig
from harness.models.language import SEG, Template, load_language, load_tokenizer
from harness.models.packing import Branch, pack
from harness.projector import VisualTokens

PARTS = Path(__file__).resolve().parents[2] / "config" / "parts" / "protocol"
PROTOCOLS = sorted(PARTS.glob("*.yaml"))
EXPRESSIONS = ["the man in red", "LEFT  zebra", "what?", "2nd from right", "café 草"]


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    def save(name):
        folder = tmp_path_factory.getbasetemp() / f"language-{name}"
        if not folder.exists():
            torch.manual_seed(0)
            SAVERS[name](folder)
        return folder

    return save


@pytest.mark.parametrize("name", SAVERS)
def test_weights_are_the_files_and_seg_starts_as_the_mean(saved, name):
    model, tokenizer = load_language(LanguageConfig(), saved(name), torch.float32)
    seg = tokenizer.convert_tokens_to_ids(SEG)
    assert seg == len(tokenizer) - 1
    if name == "llava":
        whole = transformers.LlavaForConditionalGeneration.from_pretrained(saved(name))
        own = {f"model.{k}": v for k, v in whole.model.language_model.state_dict().items()}
        own["lm_head.weight"] = whole.lm_head.weight
    else:
        own = transformers.AutoModelForCausalLM.from_pretrained(saved(name)).state_dict()
    state = model.state_dict()
    assert state.keys() == own.keys()
    for key, value in own.items():
        rows = seg if "embed_tokens" in key or "lm_head" in key else len(value)
        assert torch.equal(state[key][:rows], value[:rows]), key
    tables = (model.get_input_embeddings().weight, model.get_output_embeddings().weight)
    for table in tables:
        assert torch.allclose(table[seg], table[:seg].mean(0), atol=1e-6)
    assert (tables[0] is tables[1]) == (name in ("smollm2", "qwen2.5"))


def test_a_seg_that_the_checkpoint_knows_is_left_as_it_is(saved, tmp_path):
    model, tokenizer = load_language(LanguageConfig(), saved("vicuna"), torch.float32)
    seg = tokenizer.convert_tokens_to_ids(SEG)
    with torch.no_grad():
        model.get_input_embeddings().weight[seg] = 7.0
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    again, _ = load_language(LanguageConfig(), tmp_path, torch.float32)
    assert torch.equal(again.get_input_embeddings().weight[seg], torch.full((32,), 7.0))


def test_half_the_weights_are_refused(saved, tmp_path):
    shutil.copytree(saved("vicuna"), tmp_path, dirs_exist_ok=True)
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path)
    state = {k: v for k, v in model.state_dict().items() if "layers.1." not in k}
    model.save_pretrained(tmp_path, state_dict=state)
    with pytest.raises(ValueError, match="does not hold a whole LlamaForCausalLM: 9 weights missing"):
        load_language(LanguageConfig(), tmp_path, torch.float32)


def tokenizers(saved):
    yield from (load_tokenizer(saved(name)) for name in SAVERS)


def check_template(protocol, tokenizer):
    template = Template.parse(protocol, tokenizer)
    seg = tokenizer.convert_tokens_to_ids(SEG)
    for text in EXPRESSIONS:
        ids, length = template.encode(text)
        assert ids.count(seg) == 1 and 0 < length <= ids.index(seg)
        assert (ids[-1] == tokenizer.eos_token_id) == protocol.end_of_answer
        words = text.lower() if protocol.lower_case else text
        said = tokenizer.decode([i for i in ids if i != tokenizer.eos_token_id])
        assert words in said and said.count(SEG) == 1
        visual = VisualTokens.dense(torch.zeros(1, 3, 4))
        embed = torch.nn.Embedding(len(tokenizer), 4)
        packed = pack(visual, [[Branch(ids, length)]], template.before, embed, seg)
        assert packed.seg_column.item() == len(template.before) + 3 + ids.index(seg)


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_every_template_holds_seg_once_in_every_tokenizer(saved, path):
    protocol = ProtocolConfig(**yaml.safe_load(path.read_text()))
    for tokenizer in tokenizers(saved):
        check_template(protocol, tokenizer)


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """The real tokenizer, as Vicuna's and LLaVA-1.5's folders hold it."""
    if not os.environ.get("RIS_TOKENIZERS"):
        pytest.skip("needs the LLaMA tokenizer in the folder named by RIS_TOKENIZERS")
    folder = tmp_path_factory.mktemp("llama")
    shutil.copy(Path(os.environ["RIS_TOKENIZERS"]) / "llama" / "tokenizer.model", folder)
    tokenizer = transformers.LlamaTokenizer.from_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("path", PROTOCOLS, ids=lambda p: p.stem)
def test_every_template_holds_seg_once_in_the_real_llama_tokenizer(llama, path):
    check_template(ProtocolConfig(**yaml.safe_load(path.read_text())), load_tokenizer(llama))


def test_real_llama_ids_are_those_of_the_pieces(llama):
    """SentencePiece's own ids of the text without [SEG], which is the first id behind the 32,000."""
    pieces = sentencepiece.SentencePieceProcessor(str(llama / "tokenizer.model"))
    question, answer = pieces.encode("cat ASSISTANT:"), pieces.encode("It is")
    template = Template.parse(
        ProtocolConfig(prompt="{image} {expression} ASSISTANT:", answer=" It is [SEG]."),
        load_tokenizer(llama),
    )
    assert template.before == (1,)
    ids, length = template.encode("cat")
    assert ids[:length] == question
    # the blank before a new token is a piece of its own, 29871; then the full stop and EOS
    assert ids[length:] == [*answer, 29871, 32000, 29889, 2]


def test_an_expression_is_always_asked_alike_and_different_ones_differently(saved):
    protocol = ProtocolConfig(**yaml.safe_load((PARTS / "glamm.yaml").read_text()))
    assert (len(protocol.prompts), len(protocol.answers)) == (16, 5)
    template = Template.parse(protocol, load_tokenizer(saved("vicuna")))
    once = [template.encode(f"thing {i}") for i in range(60)]
    assert once == [template.encode(f"thing {i}") for i in range(60)]
    drawn = [template._drawn(template.questions, "question", f"thing {i}") for i in range(400)]
    counts = [drawn.count(question) for question in template.questions]
    assert min(counts) > 8 and max(counts) < 50  # 25 expected of each


def test_prompts_that_begin_differently_are_refused(saved):
    protocol = ProtocolConfig(prompt=("a {image} {expression}", "b {image} {expression}"))
    with pytest.raises(ValueError, match="must be the same up to"):
        Template.parse(protocol, load_tokenizer(saved("vicuna")))
