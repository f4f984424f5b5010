"""A GGUF header in, the same model as transformers describes it out: config.json and the list of its weights.

What llama.cpp's converter did to a weight is written beside it (`Form`); its inverse is in weights.py.
"""

from collections.abc import Callable
from typing import Any

from scope_cli.errors import ModelError
from scope_cli.models.gguf import families
from scope_cli.models.gguf.decoder import Decoder, Described
from scope_cli.models.gguf.fields import Fields
from scope_cli.models.gguf.header import Header


def describe(header: Header) -> Described:
    """Raises ModelError for what cannot be run, lacks, or says what nobody understands."""
    kind = header.metadata.get("general.type", "model")
    if kind != "model" or header.architecture == "clip":
        what = "an adapter" if kind == "adapter" else "a vision tower"
        raise ModelError(f"{header.name} is {what}, not a language model", "name the model's own file")
    make = ARCHITECTURES.get(header.architecture)
    if make is None:
        why = REFUSED.get(header.architecture, "scope does not read this architecture from GGUF")
        raise ModelError(
            f"{header.name} holds a {header.architecture} model, which cannot be run: {why}",
            f"what works as GGUF: {', '.join(sorted(ARCHITECTURES))}",
        )
    model = Decoder(Fields(header))
    config = make(model)
    model.check()
    return Described(config, tuple(model.weights))


Make = Callable[[Decoder], dict[str, Any]]
ARCHITECTURES: dict[str, Make] = {
    "gemma": families.gemma,
    "gemma3": families.gemma3,
    "gpt2": families.gpt2,
    "granite": families.granite,
    "llama": families.llama,
    "minimax-m2": families.minimax_m2,
    "olmo2": families.olmo2,
    "phi3": families.phi3,
    "qwen2": families.qwen2,
    "qwen2moe": families.qwen_moe,
    "qwen3": families.qwen3,
    "qwen3moe": families.qwen_moe,
    "smollm3": families.smollm3,
    "starcoder2": families.starcoder2,
}
_OWN = "it computes its attention by itself"
_HYBRID = "some of its layers are no attention"
_ENCODER = "an encoder reads the prompt, there is no prompt in the decoder's cache"
REFUSED = {
    "bert": "it is an encoder, it writes nothing",
    "bloom": _OWN,
    "deepseek2": "keys and values are compressed together (MLA)",
    "falcon": _OWN,
    "falcon-h1": _HYBRID,
    "gemma2": "attention logits are capped",
    "gpt-oss": "attention has learned sinks",
    "jamba": _HYBRID,
    "lfm2": _HYBRID,
    "mamba": _HYBRID,
    "mamba2": _HYBRID,
    "mpt": _OWN,
    "nemotron_h": _HYBRID,
    "qwen3next": _HYBRID,
    "qwen35": _HYBRID,
    "qwen35moe": _HYBRID,
    "rwkv6": _HYBRID,
    "rwkv7": _HYBRID,
    "stablelm": _OWN,
    "t5": _ENCODER,
    "t5encoder": _ENCODER,
}
