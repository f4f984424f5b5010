"""Tiny random models of every promised family, made in the test: no download, milliseconds a step."""

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from scope_cli.models.attention import ATTENTION

SHAPE = {
    "vocab_size": 260,
    "hidden_size": 32,
    "intermediate_size": 64,  # whole vector registers, as in real models: the rest of one rounds differently
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 8192,
    "bos_token_id": 256,
    "eos_token_id": 257,
    "pad_token_id": 258,
}
FAMILIES: dict[str, PreTrainedConfig] = {
    "llama": LlamaConfig(**SHAPE),
    "llama-mha": LlamaConfig(**{**SHAPE, "num_key_value_heads": 4}),
    "llama-mqa": LlamaConfig(**{**SHAPE, "num_attention_heads": 8, "num_key_value_heads": 1}),
    "qwen2": Qwen2Config(**SHAPE),
    "qwen3": Qwen3Config(**SHAPE),
    "mistral": MistralConfig(**SHAPE, sliding_window=None),
    "mistral-window": MistralConfig(**SHAPE, sliding_window=12),
    "gemma3": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 4},
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        query_pre_attn_scalar=8,
        tie_word_embeddings=False,  # tied and scaled, a random one repeats its input
    ),
    "gemma3-scaled": Gemma3TextConfig(
        **{**SHAPE, "num_hidden_layers": 2},
        sliding_window=8,
        layer_types=["sliding_attention", "full_attention"],
        query_pre_attn_scalar=50,  # queries times keys are scaled by another number than head_dim ** -0.5
        tie_word_embeddings=False,
    ),
}

PACKED_FAMILIES = {  # whose heads 4 bits can pack
    f"{name}-32": type(FAMILIES[name]).from_dict(FAMILIES[name].to_dict() | {"head_dim": 32})
    for name in ("llama", "gemma3", "mistral-window", "qwen3")
}


def tiny_model(
    family: str = "llama", dtype: torch.dtype = torch.float64, attention: str = ATTENTION, seed: int = 0
) -> PreTrainedModel:
    """A random model with larger weights than usual, so that attention matters and tokens differ."""
    of_family = (FAMILIES | PACKED_FAMILIES)[family]
    config = type(of_family).from_dict({**of_family.to_dict(), "initializer_range": 0.4})
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    return model.to(dtype).eval().requires_grad_(False)


def tiny_tokenizer(chat_template: str | None = None) -> PreTrainedTokenizerFast:
    """One token per byte: any text goes in, ids below 256 are bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet(), key=byte_of)
    tokenizer = Tokenizer(models.BPE({char: byte for byte, char in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<bos>", "<eos>", "<pad>", "<end>"])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<bos>",
        eos_token="<eos>",
        pad_token="<pad>",
        chat_template=chat_template,
    )


def byte_of(char: str) -> int:
    """The byte that a character of the byte-level alphabet stands for."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    if ord(char) in plain:
        return ord(char)
    rest = [byte for byte in range(256) if byte not in plain]
    return rest[ord(char) - 256]
