"""A prompt's chunk attends in C++: reading.h, on tensors."""

import ctypes

import torch
from torch import Tensor

from scope_cli.native.library import library
from scope_cli.native.tables import Address, Float, Int, fields


class ChunkTable(ctypes.Structure):
    _fields_ = [
        *fields(Address, "query keys values out"),
        *fields(ctypes.c_int64, "query_head query_token key_head key_token value_head value_token"),
        *fields(Int, "kv_heads group head_dim tokens seen window"),
        ("scale", Float),
    ]


def reads(query: Tensor) -> bool:
    """Whether `attend_chunk` takes it."""
    return query.device.type == "cpu" and query.dtype == torch.float32 and library() is not None


def attend_chunk(query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None) -> Tensor:
    """softmax(scale * query @ keys^T) @ values, each token over those up to its own, `window` at most.

    query: float32 [1, heads, tokens, head_dim], of the newest tokens
    keys, values: float32 [1, kv_heads, seen, head_dim]
    returns [1, heads, tokens, head_dim], a view of [1, tokens, heads, head_dim]
    """
    native = library()
    assert native is not None
    parts = [part if part.stride(3) == 1 else part.contiguous() for part in (query, keys, values)]
    _, heads, tokens, head_dim = query.shape
    out = query.new_empty(1, tokens, heads, head_dim)
    table = ChunkTable(*(part.data_ptr() for part in (*parts, out)))
    for name, part in zip(("query", "key", "value"), parts, strict=True):
        setattr(table, f"{name}_head", part.stride(1))
        setattr(table, f"{name}_token", part.stride(2))
    table.kv_heads, table.head_dim, table.tokens, table.seen = keys.shape[1], head_dim, tokens, keys.shape[2]
    table.group = heads // table.kv_heads
    table.window = table.seen if window is None else window
    table.scale = scale
    native.functions.scope_read(ctypes.byref(table), ctypes.c_int32(torch.get_num_threads()))
    return out.transpose(1, 2)
