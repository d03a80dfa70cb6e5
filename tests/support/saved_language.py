"""Language models and tokenizers in the formats of the real ones, random and tiny."""

import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}


def byte_level(folder, **specials):
    """A byte-level BPE tokenizer, as Qwen's and SmolLM's are; no BOS before a text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(
        ["what is the man in this image? Sure, it is. USER: ASSISTANT:"] * 9, trainer
    )
    fast = transformers.PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials)
    fast.save_pretrained(folder)
    return fast


def save_llama(folder):
    tokenizer = byte_level(folder, bos_token="<|im_start|>", eos_token="<|im_end|>")
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), tie_word_embeddings=True, **SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def save_vicuna(folder):
    tokenizer = byte_level(folder, bos_token="<s>", eos_token="</s>")
    config = transformers.LlamaConfig(vocab_size=len(tokenizer), **SIZES)
    transformers.LlamaForCausalLM(config).save_pretrained(folder)


def save_qwen(folder):
    tokenizer = byte_level(folder, eos_token="<|im_end|>")
    reserve = len(tokenizer) + 24  # Qwen's embeddings hold more rows than its tokenizer has tokens
    config = transformers.Qwen2Config(
        vocab_size=reserve, num_key_value_heads=2, tie_word_embeddings=True, **SIZES
    )
    transformers.Qwen2ForCausalLM(config).save_pretrained(folder)


def save_llava(folder):
    tokenizer = byte_level(folder, bos_token="<s>", eos_token="</s>")
    vision = transformers.CLIPVisionConfig(image_size=28, patch_size=14, projection_dim=16, **SIZES)
    text = transformers.LlamaConfig(vocab_size=len(tokenizer), **SIZES)
    config = transformers.LlavaConfig(vision_config=vision, text_config=text)
    transformers.LlavaForConditionalGeneration(config).save_pretrained(folder)


SAVERS = {"vicuna": save_vicuna, "smollm2": save_llama, "qwen2.5": save_qwen, "llava": save_llava}
