"""The one seam into transformers: a layer's queries, keys and values in, its attention output out.

Registered as the attention implementation "scope", it works for every model that asks transformers for one,
with no change to model code. No mask function is registered, so `attention_mask` is always None: what may be
seen is decided here, by the slots. The cache arrives as a keyword argument of the model call.
"""

from typing import TYPE_CHECKING, Any

import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface

from scope_cli.errors import ModelError

if TYPE_CHECKING:
    from scope_cli.cache import ScopeCache

ATTENTION = "scope"


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
    assert scope_cache is not None, "a model with scope's attention is called with scope_cache=..."
    if s_aux is not None:
        raise ModelError("attention with learned sinks (gpt-oss) is not supported")
    layer = scope_cache.layers[module.layer_idx]  # type: ignore[index]
    layer.scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    if scope_cache.policy.weigh:
        layer.output_weight = module.o_proj.weight  # type: ignore[union-attr, assignment]
    if scope_cache.chunk is not None:
        keys, values, visible = layer.read(scope_cache.chunk, key, value)
        out = F.scaled_dot_product_attention(query, keys, values, visible, scale=layer.scale, enable_gqa=True)
    else:
        keys, values, bias = layer.write(key, value)
        lanes, heads, _tokens, head_dim = query.shape
        grouped = query.view(lanes, keys.shape[1], -1, head_dim)  # a group shares its KV head
        out = F.scaled_dot_product_attention(grouped, keys, values, bias, scale=layer.scale)
        out = out.view(lanes, heads, 1, head_dim)
    layer.remember(query, scope_cache.chunk)
    return out.transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, attend)
