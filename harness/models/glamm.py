"""Takes a GLaMM or LISA checkpoint apart into files that the harness loads like any others.

Key names are those of groundingLMM's and LISA's own ``state_dict`` (``model.text_hidden_fcs``,
``model.grounding_encoder`` or ``model.visual_model``, ``model.mm_projector``). Every key is used, left for a
stated reason, or refused; every tensor that is expected is there, or nothing is written but the report.
"""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from segment_anything.modeling import Sam
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from harness.files import read_json, write_json
from harness.models.language import SEG, load_tokenizer
from harness.tensors import load_tensors, save_tensors

__all__ = ["Report", "convert_checkpoint"]

# What takes a key, and under which name; the first that fits.
_TAKEN = {
    "model.text_hidden_fcs.0.": ("start", "seg_head."),
    "model.mm_projector.": ("start", "projector."),
    "model.grounding_encoder.": ("sam", ""),
    "model.visual_model.": ("sam", ""),
    "model.layers.": ("language", "model.layers."),
    "model.embed_tokens.": ("language", "model.embed_tokens."),
    "model.norm.": ("language", "model.norm."),
    "lm_head.": ("language", "lm_head."),
}
_LEFT = {
    "model.region_encoder.": "reads boxes of other tasks, not expressions",
    "model.vision_tower.": "the frozen CLIP; loaded from its own checkpoint",
}
_LEFT_ENDINGS = {
    ".rotary_emb.inv_freq": "computed, not learnt",
    "num_batches_tracked": "computed, not learnt",
}
_KINDS = ("weight", "bias")
_SEG_HEAD = [f"seg_head.{layer}.{kind}" for layer in (0, 2) for kind in _KINDS]
# GLaMM has LLaVA-1.5's two layers between encoder and language model, LISA the one of the first LLaVA.
_MLP = [f"projector.{layer}.{kind}" for layer in (0, 2) for kind in _KINDS]
_LINEAR = [f"projector.{kind}" for kind in _KINDS]
_LANGUAGE_OPTIONS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "hidden_act",
    "max_position_embeddings",
    "rms_norm_eps",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
)
_TOKENIZER_FILES = (
    "tokenizer.model",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
)


@dataclass
class Report:
    """What became of every key of a checkpoint.

    Attributes:
        used: where each key went: ``language``, ``sam`` or ``start``, and its name there.
        left: keys that are not needed, with the reason.
        unknown: keys that fit nothing.
        missing: tensors that were expected and not found.
        mismatched: tensors of another shape than expected.
    """

    used: dict[str, str] = field(default_factory=dict)
    left: dict[str, str] = field(default_factory=dict)
    unknown: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """With counts first."""
        taken = Counter(place.partition(":")[0] for place in self.used.values())
        counts = {"used": dict(taken), "left": len(self.left), "unknown": len(self.unknown)}
        return {
            "counts": {**counts, "missing": len(self.missing), "mismatched": len(self.mismatched)},
            **vars(self),
        }


def _shards(source: Path) -> Iterator[dict[str, Tensor]]:
    """The checkpoint's files, one at a time."""
    safe, pickled = sorted(source.glob("*.safetensors")), sorted(source.glob("pytorch_model*.bin"))
    if not safe and not pickled:
        raise FileNotFoundError(
            f"{source} holds neither *.safetensors nor pytorch_model*.bin; fetch it again"
        )
    for path in safe or pickled:
        if path.suffix == ".safetensors":
            yield load_tensors(path, "fetch it again")
        else:
            # weights_only: a checkpoint from the internet is data, never code
            yield torch.load(path, map_location="cpu", weights_only=True)


def _place(key: str) -> tuple[str, str] | None:
    for prefix, (part, name) in _TAKEN.items():
        if key.startswith(prefix):
            return part, name + key.removeprefix(prefix)
    return None


def _reason(key: str) -> str | None:
    for ending, reason in _LEFT_ENDINGS.items():
        if key.endswith(ending):
            return reason
    return next((reason for prefix, reason in _LEFT.items() if key.startswith(prefix)), None)


def _expected(config: LlamaConfig, sam: Sam) -> dict[str, dict[str, list[int] | None]]:
    """Names and shapes of every part, of the projector in both forms; ``None``: the checkpoint decides."""
    with torch.device("meta"):
        language = LlamaForCausalLM(config)
    return {
        "language": {k: list(v.shape) for k, v in language.state_dict().items()},
        "sam": {k: list(v.shape) for k, v in sam.state_dict().items()},
        "start": dict.fromkeys([*_SEG_HEAD, *_MLP, *_LINEAR]),
    }


def convert_checkpoint(source: Path, out: Path, sam: Sam) -> Report:
    """Write ``language/``, ``sam.safetensors``, ``start.safetensors`` and ``report.json`` below ``out``.

    They are named in a part of the config: ``language.source``, ``sam.source`` and ``start``.

    Args:
        source: the checkpoint's folder, in Hugging Face layout, LoRA merged.
        out: a folder; files of the same names are replaced.
        sam: of the checkpoint's size (names and shapes alone are read: it may lie on ``meta``).

    Raises:
        FileNotFoundError: the folder holds no weights.
        ValueError: a key fits nothing, or a tensor is missing or of another shape; the report lists them.
    """
    declared = read_json(source / "config.json")
    config = LlamaConfig(**{k: declared[k] for k in _LANGUAGE_OPTIONS if k in declared})
    expected = _expected(config, sam)
    report = Report()
    found: dict[str, dict[str, Tensor]] = {part: {} for part in expected}
    for shard in _shards(source):
        for key, tensor in shard.items():
            _sort_in(key, tensor, expected, found, report)
    for name in _MLP if any(name in found["start"] for name in _LINEAR) else _LINEAR:
        if name not in found["start"]:
            del expected["start"][name]
    report.missing = [f"{p}:{n}" for p, names in expected.items() for n in names if n not in found[p]]
    write_json(out / "report.json", report.as_json())
    wrong = [*report.unknown, *report.missing, *report.mismatched]
    if wrong:
        raise ValueError(
            f"{source} is not a checkpoint of this kind: {len(report.unknown)} keys unknown, "
            f"{len(report.missing)} missing, {len(report.mismatched)} of another shape "
            f"({', '.join(wrong[:3])}); {out / 'report.json'} lists them"
        )
    with torch.device("meta"):
        language: Any = LlamaForCausalLM(config)
    language.to(found["language"]["model.norm.weight"].dtype)
    language.save_pretrained(out / "language", state_dict=found["language"])
    for name in _TOKENIZER_FILES:
        if (source / name).is_file():
            shutil.copyfile(source / name, out / "language" / name)
    save_tensors(out / "sam.safetensors", found["sam"])
    save_tensors(out / "start.safetensors", found["start"])
    _check_seg(out / "language", config.vocab_size)
    return report


def _sort_in(
    key: str,
    tensor: Tensor,
    expected: dict[str, dict[str, list[int] | None]],
    found: dict[str, dict[str, Tensor]],
    report: Report,
) -> None:
    if (reason := _reason(key)) is not None:
        report.left[key] = reason
        return
    part, name = _place(key) or ("", "")
    if part not in expected or name not in expected[part]:
        report.unknown.append(key)
        return
    shape = expected[part][name]
    if shape is not None and shape != list(tensor.shape):
        report.mismatched.append(f"{key}: {list(tensor.shape)}, not {shape}")
    report.used[key] = f"{part}:{name}"
    found[part][name] = tensor


def _check_seg(folder: Path, vocabulary: int) -> None:
    tokenizer = load_tokenizer(folder)
    seg: Any = tokenizer.convert_tokens_to_ids(SEG)
    if seg >= vocabulary:
        raise ValueError(
            f"{folder}: the tokenizer does not know {SEG}, the weights hold {vocabulary} tokens; "
            "put the checkpoint's added_tokens.json beside it and convert again"
        )
