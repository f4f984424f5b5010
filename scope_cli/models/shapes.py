"""A model's config.json in, its Geometry and the shape of every weight out: plain JSON, no torch.

What transformers takes for granted where a config is silent stands in FAMILIES; the tests compare both.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from scope_cli.errors import ModelError
from scope_cli.geometry import Geometry, LayerGeometry, context_of, with_context
from scope_cli.models.folder import read_config, stored_shapes
from scope_cli.models.formats import BITS, DTYPE_BYTES, packed_bytes, plain_bytes

Shapes = dict[str, tuple[int, ...]]
COMMON = {"num_key_value_heads": None, "head_dim": None, "tie_word_embeddings": False}
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {**COMMON, "max_position_embeddings": 2048, "sliding_window": None},
    "mistral": {
        **COMMON,
        "num_key_value_heads": 8,
        "max_position_embeddings": 4096 * 32,
        "sliding_window": 4096,
    },
    "qwen2": {**COMMON, "num_key_value_heads": 32, "max_position_embeddings": 32768, "sliding_window": 4096},
    "qwen3": {
        **COMMON,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "max_position_embeddings": 32768,
        "sliding_window": 4096,
    },
    "gemma3_text": {
        **COMMON,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "head_dim": 256,
        "vocab_size": 262_208,
        "max_position_embeddings": 131_072,
        "sliding_window": 4096,
        "tie_word_embeddings": True,
    },
}
VISION = {  # Gemma 3's eye, SigLIP, where config.json is silent
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_channels": 3,
    "image_size": 224,
    "patch_size": 16,
}
NEEDED = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "vocab_size")
HINT = "what can be planned: " + ", ".join(FAMILIES) + ", gemma3; `scope profile` without --plan measures"


@dataclass(frozen=True)
class ModelShape:
    """What planning has to know of a model."""

    name: str
    family: str
    geometry: Geometry
    intermediate: int  # width of the feed-forward layers
    dtype: str  # the checkpoint's own
    weights: Shapes

    def weight_bytes(self, dtype: str, load_in: str | None = None) -> int:
        if load_in in BITS:
            shapes = self.weights.items()
            return packed_bytes(shapes, DTYPE_BYTES[dtype], BITS[load_in], self.scales_embedding)
        return plain_bytes(self.weights.items(), DTYPE_BYTES[dtype], load_in)

    @property
    def scales_embedding(self) -> bool:
        """Gemma's: a class of its own, which is not packed."""
        return self.family.startswith("gemma3")


def read_shape(file: Path, name: str, context: int | None = None) -> ModelShape:
    """The shape of the model whose config.json this is; weights that lie beside it need no computing."""
    config = read_config(file)
    shape = shape_of(config, name, context)
    if stored := dict(stored_shapes(file.parent)):
        return ModelShape(name, shape.family, shape.geometry, shape.intermediate, shape.dtype, stored)
    return shape


def shape_of(config: dict[str, Any], name: str = "the model", context: int | None = None) -> ModelShape:
    """`context`: what was asked for. Raises ModelError where the family is not known, or a field lacks."""
    text = config.get("text_config") if config.get("model_type") == "gemma3" else config
    family = "gemma3_text" if config.get("model_type") == "gemma3" else config.get("model_type")
    if not isinstance(family, str) or family not in FAMILIES or not isinstance(text, dict):
        raise ModelError(f"{name}: config.json has model_type {config.get('model_type')!r}", HINT)
    fields = {**FAMILIES[family], **{key: value for key, value in text.items() if value is not None}}
    if family == "mistral" and "sliding_window" in text:
        fields["sliding_window"] = text["sliding_window"]  # null means something: no window
    if config is not text and "tie_word_embeddings" in config:
        fields["tie_word_embeddings"] = config["tie_word_embeddings"]
    if lacking := [key for key in NEEDED if not _is_count(fields.get(key))]:
        raise ModelError(
            f"{name}: config.json lacks {', '.join(lacking)}",
            "a config as save_pretrained writes it has them all",
        )
    if fields.get("attn_logit_softcapping"):
        raise ModelError(f"{name} cannot be run: attention logits are capped (attn_logit_softcapping)", HINT)
    heads = fields["num_attention_heads"]
    head_dim = fields["head_dim"] or fields["hidden_size"] // heads
    kv_heads = fields["num_key_value_heads"] or heads
    layers = tuple(
        LayerGeometry(
            kind="window" if window else "full",
            heads=heads,
            kv_heads=kv_heads,
            head_dim=head_dim,
            window=window,
        )
        for window in _windows(family, fields, name)
    )
    positions = fields["max_position_embeddings"]
    rope = text.get("rope_parameters") or text.get("rope_scaling") or {}
    if family == "gemma3_text":  # of the full layers alone
        rope = {"full_attention": rope}
    geometry = Geometry(layers, positions, fields["hidden_size"], fields["vocab_size"])
    geometry = with_context(geometry, context_of(positions, rope), context, name)
    weights = dict(_text_weights(family, fields, kv_heads, head_dim))
    if config is not text and isinstance(config.get("vision_config"), dict):
        weights |= dict(_vision_weights({**VISION, **config["vision_config"]}, fields["hidden_size"]))
    dtype = str(
        config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or text.get("torch_dtype")
    )
    return ModelShape(
        name=name,
        family=config["model_type"],
        geometry=geometry,
        intermediate=fields["intermediate_size"],
        dtype=dtype if dtype in DTYPE_BYTES else "bfloat16",
        weights=weights,
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and value > 0


def _windows(family: str, fields: dict[str, Any], name: str) -> list[int]:
    """Each layer's sliding window, 0 where there is none."""
    count, window = fields["num_hidden_layers"], fields["sliding_window"]
    if family.startswith("qwen") and not fields.get("use_sliding_window"):
        window = None
    types = fields.get("layer_types")
    if types is None and family == "gemma3_text":
        pattern = fields.get("sliding_window_pattern", 6)
        types = ["sliding_attention" if (i + 1) % pattern else "full_attention" for i in range(count)]
    elif types is None and family.startswith("qwen"):
        first = fields.get("max_window_layers", 28)
        types = ["sliding_attention" if window and i >= first else "full_attention" for i in range(count)]
    elif types is None or family == "mistral":
        types = ["sliding_attention" if window else "full_attention"] * count
    other = sorted(set(types) - {"full_attention", "sliding_attention"})
    if other or len(types) != count:
        what = f"{other[0]} layers" if other else f"{len(types)} layer_types for {count} layers"
        raise ModelError(f"{name} cannot be planned: config.json has {what}", HINT)
    return [window or 0 if kind == "sliding_attention" else 0 for kind in types]


def _text_weights(
    family: str, fields: dict[str, Any], kv_heads: int, head_dim: int
) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every weight of the language model."""
    hidden, inner, vocab = fields["hidden_size"], fields["intermediate_size"], fields["vocab_size"]
    queries, keys = fields["num_attention_heads"] * head_dim, kv_heads * head_dim
    gemma = family == "gemma3_text"
    attention_bias = family == "qwen2" or fields.get("attention_bias", False)
    yield "embed_tokens", (vocab, hidden)
    for i in range(fields["num_hidden_layers"]):
        at = f"layers.{i}."
        for part, rows, columns in (
            ("q", queries, hidden),
            ("k", keys, hidden),
            ("v", keys, hidden),
            ("o", hidden, queries),
        ):
            yield f"{at}{part}_proj.weight", (rows, columns)
            if attention_bias and (part != "o" or family != "qwen2"):
                yield f"{at}{part}_proj.bias", (rows,)
        if gemma or family == "qwen3":
            yield f"{at}q_norm", (head_dim,)
            yield f"{at}k_norm", (head_dim,)
        for part, rows, columns in (
            ("gate", inner, hidden),
            ("up", inner, hidden),
            ("down", hidden, inner),
        ):
            yield f"{at}{part}_proj.weight", (rows, columns)
            if fields.get("mlp_bias"):
                yield f"{at}{part}_proj.bias", (rows,)
        for norm in range(4 if gemma else 2):
            yield f"{at}norm.{norm}", (hidden,)
    yield "norm", (hidden,)
    if not fields["tie_word_embeddings"]:
        yield "lm_head", (vocab, hidden)


def _vision_weights(fields: dict[str, Any], text_hidden: int) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Gemma 3's vision tower: it is loaded with the model, though nobody shows it a picture."""
    hidden, inner, patch = fields["hidden_size"], fields["intermediate_size"], fields["patch_size"]
    patches = (fields["image_size"] // patch) ** 2
    yield "vision.patch", (hidden, fields["num_channels"], patch, patch)
    yield "vision.patch.bias", (hidden,)
    yield "vision.embed_positions", (patches, hidden)
    for i in range(fields["num_hidden_layers"]):
        at = f"vision.layers.{i}."
        for part in "qkvo":
            yield f"{at}{part}.weight", (hidden, hidden)
            yield f"{at}{part}.bias", (hidden,)
        yield from ((f"{at}fc1.weight", (inner, hidden)), (f"{at}fc1.bias", (inner,)))
        yield from ((f"{at}fc2.weight", (hidden, inner)), (f"{at}fc2.bias", (hidden,)))
        for norm in range(4):
            yield f"{at}norm.{norm}", (hidden,)
    yield from (("vision.norm", (hidden,)), ("vision.norm.bias", (hidden,)))
    yield from (("projector", (hidden, text_hidden)), ("projector.norm", (hidden,)))
