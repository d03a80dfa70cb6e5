"""GLaMM and LISA checkpoints, tiny, with the key names of the real ones."""

import json

import torch
import transformers
from saved_language import byte_level

from harness.models.glamm import convert_checkpoint
from harness.models.language import SEG
from harness.models.sam import TinySamSize, build_tiny_sam

WIDTH, VISION, PROMPT = 32, 24, 16


def tiny_sam():
    return build_tiny_sam(TinySamSize(image_size=32, width=16, depth=1, heads=2, prompt_width=PROMPT))


def save_glamm(folder):
    """A folder as the hub holds GLaMM's, but for its pickled shards.

    Returns:
        The tensors that are to be in them.
    """
    tokenizer = byte_level(folder, bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens(["<bbox>", "<point>", SEG, "<p>", "</p>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=64,
        rms_norm_eps=1e-5,
    )
    declared = {
        **config.to_dict(),
        "model_type": "llava",
        "architectures": ["GLaMMForCausalLM"],
        "out_dim": PROMPT,
    }
    (folder / "config.json").write_text(json.dumps(declared))
    state = {k: v.half() for k, v in transformers.LlamaForCausalLM(config).state_dict().items()}
    state |= {f"model.grounding_encoder.{k}": v.half() for k, v in tiny_sam().state_dict().items()}
    for prefix, inner, outer in (("text_hidden_fcs.0", WIDTH, PROMPT), ("mm_projector", VISION, WIDTH)):
        layers = torch.nn.Sequential(
            torch.nn.Linear(inner, WIDTH), torch.nn.ReLU(), torch.nn.Linear(WIDTH, outer)
        )
        state |= {f"model.{prefix}.{k}": v.half() for k, v in layers.state_dict().items()}
    state["model.region_encoder.mlvl_fuse.input_conv.0.weight"] = torch.zeros(2, 2)
    state["model.vision_tower.vision_tower.vision_model.post_layernorm.weight"] = torch.zeros(3)
    state["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.zeros(4)
    return state


def write(folder, state, parts=2):
    for path in folder.glob("pytorch_model*"):
        path.unlink()
    names = sorted(state)
    for number in range(parts):
        shard = {k: state[k] for k in names[number::parts]}
        torch.save(shard, folder / f"pytorch_model-{number + 1:05d}-of-{parts:05d}.bin")


def converted(original, out, **changes):
    folder, state = original
    write(folder, {k: v for k, v in {**state, **changes}.items() if v is not None})
    with torch.device("meta"):
        shapes = tiny_sam()
    return convert_checkpoint(folder, out, shapes)
