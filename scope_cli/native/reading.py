"""A prompt's chunk attends in C++: reading.h, on tensors."""

import ctypes

import torch
from torch import Tensor

from scope_cli.native.library import Library
from scope_cli.native.tables import Address, Float, Int, fields


class ChunkTable(ctypes.Structure):
    _fields_ = [
        *fields(Address, "query keys values out"),
        *fields(ctypes.c_int64, "query_head query_token key_head key_token value_head value_token"),
        *fields(Int, "kv_heads group head_dim tokens seen window"),
        ("scale", Float),
        ("tiles", Address),
    ]


class ChunkAttention:
    """softmax(scale * query @ keys^T) @ values, each token over those up to its own, `window` at most.

    All three, and the weights, are rounded: queries and keys to 13 and 14 bits, values and weights to 8.
    """

    def __init__(self, library: Library) -> None:
        self._functions = library.functions
        self._functions.scope_read_tiles.restype = ctypes.c_int64
        self.tiles = torch.empty(0)  # of all layers, one after the other

    def __call__(
        self, query: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None
    ) -> Tensor:
        """query: float32 [1, heads, tokens, head_dim], of the newest tokens
        keys, values: float32 [1, kv_heads, seen, head_dim]
        returns [1, heads, tokens, head_dim], a view of [1, tokens, heads, head_dim]
        """
        parts = [part if part.stride(3) == 1 else part.contiguous() for part in (query, keys, values)]
        _, heads, tokens, head_dim = query.shape
        out = query.new_empty(1, tokens, heads, head_dim)
        table = ChunkTable(*(part.data_ptr() for part in (*parts, out)))
        for name, part in zip(("query", "key", "value"), parts, strict=True):
            setattr(table, f"{name}_head", part.stride(1))
            setattr(table, f"{name}_token", part.stride(2))
        table.tokens, table.head_dim = tokens, head_dim
        table.kv_heads, table.seen = keys.shape[1:3]
        table.group = heads // table.kv_heads
        table.window = table.seen if window is None else window
        table.scale = scale
        needed = self._functions.scope_read_tiles(ctypes.byref(table))
        if needed > self.tiles.numel():
            self.tiles = torch.empty(0)  # not both at once
            self.tiles = torch.empty(needed)
        table.tiles = self.tiles.data_ptr()
        self._functions.scope_read(ctypes.byref(table), ctypes.c_int32(torch.get_num_threads()))
        return out.transpose(1, 2)
