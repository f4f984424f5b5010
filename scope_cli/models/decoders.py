"""How a decoder's layers are put together, by model type; a model in, its parts out, or why it has none.

What a row of the table does not say is read off the modules: norms of queries and keys, biases, windows.
A decoder that is put together in another way is no row; the step's self-test finds whether a row is right.
The table itself needs no torch: a plan asks for it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

SILU, GELU_TANH = 0, 1  # as vectors.h numbers them
ACTIVATIONS = {"silu": SILU, "swish": SILU, "gelu_pytorch_tanh": GELU_TANH}


@dataclass(frozen=True)
class Row:
    """Names of a layer's norms, None where there is none; and what is special."""

    before_attention: str | None = "input_layernorm"
    after_attention: str | None = None
    before_mlp: str | None = "post_attention_layernorm"
    after_mlp: str | None = None
    offset: float = 0.0  # added to every norm's weights
    norms_all_heads: bool = False  # queries, and keys, are normed as one row
    fused: bool = False  # queries, keys, values in one matrix; gate and up in one


LIKE_LLAMA = Row()
GEMMA = Row(
    after_attention="post_attention_layernorm",
    before_mlp="pre_feedforward_layernorm",
    after_mlp="post_feedforward_layernorm",
    offset=1.0,
)
ROWS = {
    **dict.fromkeys(("llama", "mistral", "qwen2", "qwen3", "smollm3", "granite"), LIKE_LLAMA),
    "phi3": Row(fused=True),
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "olmo2": Row(
        before_attention=None,
        after_attention="post_attention_layernorm",
        before_mlp=None,
        after_mlp="post_feedforward_layernorm",
        norms_all_heads=True,
    ),
}


@dataclass(frozen=True)
class Product:
    """Rows of a linear layer: from `first` to before `last`."""

    linear: Any  # nn.Linear, or a packed one
    first: int
    last: int


@dataclass(frozen=True)
class Rotation:
    frequencies: Tensor  # float32 [half]
    factor: float


@dataclass(frozen=True)
class LayerParts:
    """One layer. Norms' weights: float32, [hidden], or of queries and keys; None: there is no such norm."""

    before_attention: Tensor | None
    after_attention: Tensor | None
    before_mlp: Tensor | None
    after_mlp: Tensor | None
    query_norm: Tensor | None
    key_norm: Tensor | None
    query: Product
    key: Product
    value: Product
    output: Product
    gate: Product
    up: Product
    down: Product
    rotation: int | None  # which of the decoder's
    activation: int
    cap: float  # of attention's logits; 0: none


@dataclass(frozen=True)
class Decoder:
    """A whole model, as step.h wants to know it."""

    embedding: nn.Module
    layers: tuple[LayerParts, ...]
    rotations: tuple[Rotation, ...]
    last_norm: Tensor
    head: Product
    epsilon: float
    norms_all_heads: bool
    embedded: float = 1.0  # rows of the embedding are multiplied by it
    residual: float = 1.0
    logit_factor: float = 1.0
    logit_cap: float = 0.0


class NotInTable(Exception):
    """A model that the step does not know, and why: half a sentence."""


def decoder_of(model: Any) -> Decoder:
    """Raises NotInTable."""
    config = model.config
    row = ROWS.get(config.model_type)
    if row is None:
        raise NotInTable(f"{config.model_type} models are not in its table")
    inner = model.model
    if "ForCausalLM" not in type(model).__name__ or len(inner.layers) != config.num_hidden_layers:
        raise NotInTable(f"a {type(model).__name__} is more than a decoder")
    activation = getattr(config, "hidden_act", None) or getattr(config, "hidden_activation", None)
    if "gemma" in config.model_type:
        activation = config.hidden_activation
    if activation not in ACTIVATIONS:
        raise NotInTable(f"its activation is {activation}")
    rotations = _rotations(inner.rotary_emb, config)
    names = list(rotations)
    return Decoder(
        embedding=model.get_input_embeddings(),
        layers=tuple(_layer(layer, row, config, names, ACTIVATIONS[activation]) for layer in inner.layers),
        rotations=tuple(rotations.values()),
        last_norm=_weight(inner.norm, row.offset),
        head=_whole(model.get_output_embeddings()),
        epsilon=float(config.rms_norm_eps),
        norms_all_heads=row.norms_all_heads,
        embedded=float(getattr(config, "embedding_multiplier", 1.0)),
        residual=float(getattr(config, "residual_multiplier", 1.0)),
        logit_factor=1.0 / float(getattr(config, "logits_scaling", 1.0)),
        logit_cap=float(getattr(config, "final_logit_softcapping", None) or 0.0),
    )


def _layer(layer: Any, row: Row, config: Any, rotations: list[str], activation: int) -> LayerParts:
    attention, mlp = layer.self_attn, layer.mlp
    turned = getattr(attention, "use_rope", True)  # SmolLM3 leaves some layers as they are
    kind = config.layer_types[attention.layer_idx] if len(rotations) > 1 else rotations[0]
    if row.fused:
        products = _parts(attention.qkv_proj, _heads_wide(config)) + _parts(mlp.gate_up_proj, [1, 1])
    else:
        own = (attention.q_proj, attention.k_proj, attention.v_proj, mlp.gate_proj, mlp.up_proj)
        products = [_whole(linear) for linear in own]
    query, key, value, gate, up = products

    def norm(of: Any, name: str | None) -> Tensor | None:
        module = getattr(of, name, None) if name else None
        return None if module is None else _weight(module, row.offset)

    return LayerParts(
        before_attention=norm(layer, row.before_attention),
        after_attention=norm(layer, row.after_attention),
        before_mlp=norm(layer, row.before_mlp),
        after_mlp=norm(layer, row.after_mlp),
        query_norm=norm(attention, "q_norm"),
        key_norm=norm(attention, "k_norm"),
        query=query,
        key=key,
        value=value,
        output=_whole(attention.o_proj),
        gate=gate,
        up=up,
        down=_whole(mlp.down_proj),
        rotation=rotations.index(kind) if turned else None,
        activation=activation,
        cap=float(getattr(config, "attn_logit_softcapping", None) or 0.0),
    )


def _heads_wide(config: Any) -> list[int]:
    """Queries, keys and values: how many heads each."""
    return [config.num_attention_heads, config.num_key_value_heads, config.num_key_value_heads]


def _whole(linear: Any) -> Product:
    return Product(linear, 0, linear.out_features)


def _parts(linear: Any, shares: list[int]) -> list[Product]:
    """A fused matrix's rows, in these shares."""
    each, first, parts = linear.out_features // sum(shares), 0, []
    for share in shares:
        parts.append(Product(linear, first, first + share * each))
        first += share * each
    return parts


def _weight(norm: Any, offset: float) -> Tensor:
    weight: Tensor = norm.weight.detach().float() + offset
    return weight.contiguous()


def _rotations(module: Any, config: Any) -> dict[str, Rotation]:
    """By kind of layer where kinds turn differently (Gemma 3)."""
    if (plain := getattr(module, "inv_freq", None)) is not None:
        return {"": Rotation(plain.detach().float().contiguous(), float(module.attention_scaling))}
    found = {}
    for kind in sorted(set(config.layer_types)):
        frequencies = getattr(module, f"{kind}_inv_freq", None)
        if frequencies is None:
            raise NotInTable("its rotation is of a kind that it does not know")
        factor = float(getattr(module, f"{kind}_attention_scaling"))
        found[kind] = Rotation(frequencies.detach().float().contiguous(), factor)
    return found
