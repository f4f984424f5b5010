"""A model's name in, its shape with random weights out: for speed and memory, which no weight changes.

`random:llama-3.1-8b` is a model of that shape whose weights are drawn on the device, with a tokenizer of one
token per byte. Nothing is downloaded and nothing but a small folder is written. The text is noise.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.errors import ModelError
from scope_cli.files import replace_file
from scope_cli.names import did_you_mean

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedConfig, PreTrainedModel

    from scope_cli.models.formats import Bits

PREFIX = "random:"
SPECIAL = ("<bos>", "<eos>", "<pad>")  # ids 256 to 258, after the bytes


def _shape(
    model_type: str, hidden: int, inner: int, layers: int, heads: int, kv_heads: int, vocab: int,
    context: int, tied: bool = False, **more: Any,
) -> dict[str, Any]:  # fmt: skip
    """As the model's own config.json says, without what changes neither speed nor memory."""
    return {
        "model_type": model_type,
        "hidden_size": hidden,
        "intermediate_size": inner,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "vocab_size": vocab,
        "max_position_embeddings": context,
        "tie_word_embeddings": tied,
        **more,
    }


def _qwen3(
    hidden: int, inner: int, layers: int, heads: int, context: int = 40_960, theta: float = 1e6,
    tied: bool = True,
) -> dict[str, Any]:  # fmt: skip
    more = {"head_dim": 128, "rope_theta": theta, "use_sliding_window": False}
    return _shape("qwen3", hidden, inner, layers, heads, 8, 151_936, context, tied, **more)


LLAMA3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
CONFIGS = {
    "tiny": _shape("llama", 64, 128, 2, 4, 2, 259, 8192),  # for trying the machinery, as `scope doctor` does
    "llama-3.1-8b": _shape(
        "llama", 4096, 14_336, 32, 32, 8, 128_256, 131_072,
        rms_norm_eps=1e-5, rope_theta=500_000.0, rope_scaling=LLAMA3_ROPE,
    ),
    "qwen3-0.6b": _qwen3(1024, 3072, 28, 16),
    "qwen3-1.7b": _qwen3(2048, 6144, 28, 16),
    "qwen3-4b": _qwen3(2560, 9728, 36, 32, 262_144, 5e6),
    "qwen3-8b": _qwen3(4096, 12_288, 36, 32, tied=False),
    "mistral-7b": _shape(
        "mistral", 4096, 14_336, 32, 32, 8, 32_768, 32_768,
        head_dim=128, rms_norm_eps=1e-5, rope_theta=1_000_000.0, sliding_window=None,
    ),
    "gemma-3-12b": _shape(
        "gemma3_text", 3840, 15_360, 48, 16, 8, 262_208, 131_072, tied=True, head_dim=256,
        query_pre_attn_scalar=256, sliding_window=1024,
        layer_types=(["sliding_attention"] * 5 + ["full_attention"]) * 8, rope_theta=1_000_000.0,
        rope_scaling={"rope_type": "linear", "factor": 8.0}, rope_local_base_freq=10_000.0,
    ),
}  # fmt: skip
DEVIATION = 0.02  # of weights that are drawn: every shape's `initializer_range`
COMMON = {"dtype": "bfloat16", "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}


def random_folder(name: str, models: Path) -> Path:
    """The folder, below `models`, of the model called `random:...`: a configuration and a tokenizer."""
    shape = name.removeprefix(PREFIX)
    if shape not in CONFIGS:
        raise ModelError(
            f"there are no random weights for {shape!r}{did_you_mean(shape, CONFIGS)}",
            f"known: {', '.join(CONFIGS)}",
        )
    folder = models / f"random-{shape}"
    folder.mkdir(parents=True, exist_ok=True)
    replace_file(folder / "config.json", json.dumps({**CONFIGS[shape], **COMMON}, indent=1, allow_nan=False))
    byte_tokenizer().save_pretrained(folder)
    return folder


def byte_tokenizer() -> Any:
    """One token per byte, id and byte the same, and SPECIAL after them."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    plain = [chr(byte) for byte in (*range(33, 127), *range(161, 173), *range(174, 256))]
    rest = [char for char in alphabet if char not in plain]  # in the order of the bytes that they stand for
    others = [byte for byte in range(256) if chr(byte) not in plain]
    ids = {char: ord(char) for char in plain} | dict(zip(rest, others, strict=True))
    tokenizer = Tokenizer(models.BPE(ids, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(list(SPECIAL))
    bos, eos, pad = SPECIAL
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos, pad_token=pad)


def random_model(
    config: "PreTrainedConfig", dtype: "torch.dtype", device: "torch.device", attention: str, seed: int = 0
) -> "PreTrainedModel":
    """The model with weights drawn on the device: normal, as its own initialisation has them."""
    import torch

    from scope_cli.models.lean import AutoModelForCausalLM

    torch.manual_seed(seed)
    with torch.device(device):
        return AutoModelForCausalLM.from_config(
            config, dtype=dtype, attn_implementation=attention, trust_remote_code=False
        )


def random_packed_model(
    config: "PreTrainedConfig", dtype: "torch.dtype", attention: str, bits: "Bits", seed: int = 0
) -> "PreTrainedModel":
    """The same packed, on a CPU: a matrix is drawn when its turn comes, so that no two are there unpacked."""
    import torch

    from scope_cli.models.packed import pack
    from scope_cli.models.skeleton import skeleton

    torch.manual_seed(seed)
    model = skeleton(config, dtype, attention)
    pack(model, bits, lambda layer: torch.normal(0.0, DEVIATION, layer.weight.shape, dtype=dtype))
    for module in model.modules():
        left = dict(module.named_parameters(recurse=False))  # what is not packed
        for name, weight in left.items():
            module.register_parameter(name, torch.nn.Parameter(torch.empty(weight.shape, dtype=dtype)))
        if left:
            model._init_weights(module)
    return model
