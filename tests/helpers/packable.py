"""Configurations of tiny models whose weights can be packed."""

from transformers import Gemma3TextConfig, LlamaConfig

SIZES = {
    "vocab_size": 128, "hidden_size": 64, "intermediate_size": 192, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32,
}  # fmt: skip


CONFIGS = {
    "tied": LlamaConfig(**SIZES, tie_word_embeddings=True),
    "untied": LlamaConfig(**SIZES, tie_word_embeddings=False),
    "odd": LlamaConfig(**{**SIZES, "vocab_size": 100, "intermediate_size": 72}, tie_word_embeddings=True),
    "scaled embedding": Gemma3TextConfig(**SIZES),
    "bias": LlamaConfig(**SIZES, attention_bias=True, mlp_bias=True),
    "few rows": LlamaConfig(**{**SIZES, "num_key_value_heads": 1}, tie_word_embeddings=True),
}
