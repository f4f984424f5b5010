"""Attention of one query of each head over a layer's slots, in C++: for steps that are not C++ themselves."""

import ctypes

import torch
from torch import Tensor

from scope_cli.native.library import Library
from scope_cli.native.tables import Slots, address


def attend(
    library: Library,
    query: Tensor,
    slots: Slots,
    scale: float,
    cap: float = 0.0,
    sinks: Tensor | None = None,
    probabilities: Tensor | None = None,
) -> Tensor:
    """softmax(scale * query @ keys^T) @ values over the slots that are not free.

    query: float32 [lanes, kv_heads, group, head_dim]; cap: logits are capped to it by tanh, 0: not
    sinks: float32 [kv_heads * group], logits that take their share and give no value
    probabilities: float32 [lanes, kv_heads, group, slots], written where it is given
    returns float32 [lanes, kv_heads, group, head_dim]; zeros where a head holds nothing
    """
    query = query.contiguous()
    out = torch.empty_like(query)
    function = library.functions.scope_attend
    function.restype = None
    function(
        ctypes.byref(slots),
        ctypes.c_int32(len(query)),
        ctypes.c_void_p(address(query)),
        ctypes.c_float(scale),
        ctypes.c_float(cap),
        ctypes.c_void_p(address(sinks)),
        ctypes.c_void_p(address(probabilities)),
        ctypes.c_void_p(address(out)),
        ctypes.c_int32(torch.get_num_threads()),
    )
    return out
