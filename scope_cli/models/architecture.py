"""A transformers configuration in; its Geometry and its class out, or why it cannot be run."""

from typing import Any

import transformers
from transformers import PreTrainedConfig
from transformers.cache_utils import get_layer_types_and_kwargs

from scope_cli.errors import ModelError
from scope_cli.geometry import Geometry, LayerGeometry, context_of, with_context
from scope_cli.models.lean import AutoModelForCausalLM, AutoModelForImageTextToText

FAMILIES = "Llama, Qwen2, Qwen3, Mistral, Gemma 3 and what is built like them"
SINKS = ("gpt_oss", "granite_swa", "granitemoe_swa", "mimo_v2_flash", "hy_v4", "flint", "deepseek_v4")


def geometry_of(config: PreTrainedConfig, context: int | None = None, name: str = "the model") -> Geometry:
    """`context`: what was asked for. Raises ModelError for a model whose attention we cannot bound."""
    text = config.get_text_config(decoder=True)
    if refusal := _refusal(config, text):
        raise _cannot_run(config, refusal)
    types, options = get_layer_types_and_kwargs(text)
    if "dummy" in types:
        raise _cannot_run(config, "some of their layers attend over another layer's keys, or over nothing")
    layers = []
    for kind, option, layer in zip(types, options, text.per_layer_config, strict=True):
        if kind not in ("full_attention", "sliding_attention"):
            raise _cannot_run(
                config, f"they have {kind} layers", f"full_attention and sliding_attention work: {FAMILIES}"
            )
        heads = layer.num_attention_heads
        window = option.get("sliding_window", 0)
        if kind == "sliding_attention" and not (type(window) is int and window > 0):
            raise _cannot_run(config, f"a layer has the sliding window {window}")
        layers.append(
            LayerGeometry(
                kind="full" if kind == "full_attention" else "window",
                heads=heads,
                kv_heads=getattr(layer, "num_key_value_heads", None) or heads,
                head_dim=getattr(layer, "head_dim", None) or layer.hidden_size // heads,
                window=window,
            )
        )
    positions = getattr(text, "max_position_embeddings", None)
    if not isinstance(positions, int):
        raise _cannot_run(config, "config.json does not say how long a text may be (max_position_embeddings)")
    geometry = Geometry(tuple(layers), positions, text.hidden_size, text.vocab_size)
    rope = getattr(text, "rope_parameters", None)
    return with_context(geometry, context_of(positions, rope), context, name)


def _refusal(config: PreTrainedConfig, text: PreTrainedConfig) -> str:
    if config.is_encoder_decoder or getattr(text, "is_encoder_decoder", False):
        return "an encoder reads the prompt, there is no prompt in the decoder's cache"
    if getattr(text, "attn_logit_softcapping", None) is not None:
        return "attention logits are capped (attn_logit_softcapping)"
    if not getattr(text, "num_attention_heads", None):
        return "they have no attention: there is no cache of keys and values to bound"
    if text.model_type in SINKS:
        return "attention has learned sinks"
    if getattr(text, "kv_lora_rank", None) is not None:
        return "keys and values are compressed together (kv_lora_rank)"
    return ""


def _cannot_run(config: PreTrainedConfig, why: str, hint: str = f"what works: {FAMILIES}") -> ModelError:
    return ModelError(f"{config.model_type} models cannot be run: {why}", hint)


def refuse_class(config: PreTrainedConfig) -> None:
    """Raises ModelError where no class of transformers writes text, or none whose attention can be ours."""
    auto = auto_class(config)
    if auto is None:
        raise _cannot_run(config, f"transformers {transformers.__version__} writes no text with them")
    if not auto._model_mapping[type(config)].is_backend_compatible():
        raise _cannot_run(config, "they compute their attention by themselves")


def auto_class(config: PreTrainedConfig) -> Any:
    """What loads a model: its class for text; else, for its text half, the one for pictures and text."""
    for auto in (AutoModelForCausalLM, AutoModelForImageTextToText):
        if type(config) in auto._model_mapping:
            return auto
    return None


def stored_dtype(config: PreTrainedConfig) -> str | None:
    """The checkpoint's own, where its config says it."""
    dtype = config.get_text_config().dtype or config.dtype
    return str(dtype).removeprefix("torch.") if dtype else None


def inner_width(text: PreTrainedConfig) -> int:
    """Of the feed-forward layers, by whatever name a family calls it."""
    for name in ("intermediate_size", "ffn_hidden_size", "ffn_dim", "n_inner"):
        width = getattr(text, name, None)
        if isinstance(width, list | tuple):
            width = max(width, default=None)
        if type(width) is int and width:
            return width
    return 4 * text.hidden_size
