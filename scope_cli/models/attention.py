"""The one seam into transformers: a layer's queries, keys and values in, its attention output out.

Registered as the attention implementation "scope", it works for every model that asks transformers for one,
with no change to model code. No mask function is registered, so `attention_mask` is always None: what may be
seen is decided here, by the slots. The cache arrives as a keyword argument of the model call.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scope_cli.cache.layers import Causal, Chunk, LayerAttention
from scope_cli.errors import ModelError
from scope_cli.geometry import Geometry
from scope_cli.models.lean import AttentionInterface, PreTrainedModel
from scope_cli.native.reading import ChunkAttention
from scope_cli.policies.received import received

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache
    from scope_cli.cache.layers import SlotLayer
    from scope_cli.cache.staging import StagedLayer

ATTENTION = "scope"
KERNEL_DTYPES = (torch.bfloat16, torch.float16, torch.float32)
KERNEL_ROW_BYTES = 512  # of a head: with more the kernel asks for shared memory that not every card has


def attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: None,
    scaling: float | None = None,
    scope_cache: "ScopeCache | None" = None,
    s_aux: None = None,
    **_: Any,
) -> tuple[Tensor, None]:
    """Store the new keys and values, attend over everything held, remember the queries.

    query: [lanes, heads, tokens, head_dim], rotated; key, value: [lanes, kv_heads, tokens, head_dim]
    returns [lanes, tokens, heads, head_dim]
    While a prompt is read `lanes` is 1; while decoding `tokens` is 1.
    """
    if s_aux is not None:
        raise ModelError("models whose attention has learned sinks cannot be run")
    if scope_cache is None:
        return attend_bound(module, query, key, value), None
    layer = scope_cache.layers[module.layer_idx]  # type: ignore[index]
    if (query.shape[-1] ** -0.5 if scaling is None else scaling) != layer.scale:
        raise ModelError("models that scale their attention from call to call cannot be run")
    if scope_cache.chunk is None:
        return attend_step(layer, query, key, value), None
    out = read_chunk(layer, scope_cache.chunk, query, key, value)
    return out.transpose(1, 2).contiguous(), None


def read_chunk(
    layer: "SlotLayer | StagedLayer",
    chunk: Chunk,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asked: int | None = None,
    attention: ChunkAttention | None = None,
) -> Tensor:
    """A prompt's chunk: store it, attend, remember the queries; returns [1, heads, asked, head_dim].

    asked: the last tokens whose attention is wanted; None: all
    attention: C++'s, where it may be rounded
    """
    store = layer.store
    assert store is not None, "the prompt has been settled"
    first = 0 if asked is None else query.shape[2] - asked
    held = attention and layer.hold(chunk, key, value, attention.store)
    if attention and held:
        out = attention(store, query[:, :, first:], held[0], layer.scale, held[1].window)
    else:
        keys, values, visible = layer.read(chunk, key, value)
        turned = store.turned_queries(query)
        mask = visible.mask(turned.device) if isinstance(visible, Causal) else visible
        out = F.scaled_dot_product_attention(
            turned, keys, values, mask, is_causal=mask is None, scale=layer.scale, enable_gqa=True
        )
        out = store.turned_back(out[:, :, first:])
    if layer.counts_received and not chunk.known_output:
        seen = store.turned_parts(held[0])[0] if held else keys[0]
        layer.add_received(received(store.turned_queries(query)[0], seen, chunk.start, layer.scale))
    layer.remember(query, chunk)
    return out


def attend_step(layer: "SlotLayer", query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """One token of each lane: write it, attend over everything held, remember the query."""
    layer.write(key, value)
    lanes, heads, _tokens, head_dim = query.shape
    grouped = query.view(lanes, layer.geometry.kv_heads, -1, head_dim)  # a group shares its KV head
    store = layer.store
    out = store.turned_back(attend_slots(store.turned_queries(grouped), layer))
    layer.remember(query, None)
    return out.view(lanes, heads, 1, head_dim).transpose(1, 2).contiguous()


def attend_slots(query: Tensor, layer: "SlotLayer") -> Tensor:
    """One turned query of each head over a prefix of the slots; query: [lanes, kv_heads, group, head_dim]."""
    if query.is_cuda and kernel_takes(query.dtype, query.shape[-1]) and layer.store.keys_in_kernel:
        assert KERNEL is not None
        return KERNEL(query, layer)
    keys, values, bias = layer.seen()
    return F.scaled_dot_product_attention(query, keys, values, bias, scale=layer.scale)


def kernel_takes(dtype: torch.dtype, head_dim: int) -> bool:
    """Whether there is a kernel, and it reads heads of this width."""
    row_bytes = head_dim * dtype.itemsize
    return KERNEL is not None and dtype in KERNEL_DTYPES and row_bytes <= KERNEL_ROW_BYTES


def triton_kernel() -> Callable[..., Tensor] | None:
    """The attention of a step on a GPU; None where Triton is not installed, and SDPA takes its place."""
    if not torch.cuda.is_available():
        return None
    try:
        from scope_cli.models.slot_attention import attend_layer
    except ImportError:
        return None
    return attend_layer


def attend_bound(module: nn.Module, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """A step of a compiled layer, which is told its slots beforehand (step.py).

    Looking them up by the layer's number would compile that number in, and every layer anew.
    """
    layer = module.scope_slots
    assert layer is not None, "a model with scope's attention is called with scope_cache=..."
    return attend_step(layer, query, key, value)  # type: ignore[arg-type]


def decoder_layers(model: PreTrainedModel) -> list[Any]:
    """The layers whose attention has a number, in its order."""
    found = [module for module in model.modules() if hasattr(getattr(module, "self_attn", None), "layer_idx")]
    return sorted(found, key=lambda layer: layer.self_attn.layer_idx)


def attention_of(model: PreTrainedModel, geometry: Geometry, weighs: bool) -> dict[int, LayerAttention]:
    """What the cache's layers are told, by layer; the output's weights where the policy weighs by them."""
    modules = [layer.self_attn for layer in decoder_layers(model)]
    return {
        module.layer_idx: LayerAttention(
            scale_of(module, geometry.layers[module.layer_idx].head_dim),
            output_weight(module) if weighs else None,
        )
        for module in modules
    }


def scale_of(module: nn.Module, head_dim: int) -> float:
    """What an attention module multiplies queries times keys by."""
    if type(module).__name__ == "OPTAttention":  # it has scaled its queries before
        return 1.0
    scale = getattr(module, "scaling", None)
    return float(head_dim**-0.5 if scale is None else scale)


def output_weight(module: nn.Module) -> Tensor:
    """The weight of an attention module's output projection, [hidden, heads * head_dim]."""
    weight = getattr(getattr(module, "o_proj", None), "weight", None)
    if weight is None:
        raise ModelError(
            "decode.weigh: this model's attention has no output projection that can be read",
            "leave out decode.weigh",
        )
    if not weight.is_floating_point():
        raise ModelError(
            f"decode.weigh: the output projection is quantised ({str(weight.dtype).removeprefix('torch.')}); "
            "criticalkv computes with its plain weights",
            "leave out decode.weigh, or model.load_in",
        )
    return weight


KERNEL = triton_kernel()
AttentionInterface.register(ATTENTION, attend)
