"""A prompt's chunk is stored and attends in C++: reading.h, on tensors."""

import ctypes
from collections.abc import Iterator

import torch
from torch import Tensor

from scope_cli.cache.store import Parts, SlotStore
from scope_cli.native.library import Library
from scope_cli.native.tables import FORMATS, Address, Float, Int, fields


class HeldTable(ctypes.Structure):
    _fields_ = [*fields(Address, "numbers scales"), ("head", ctypes.c_int64), *fields(Int, "format turned")]


class StoredTable(ctypes.Structure):
    _fields_ = [
        *fields(Address, "new_keys new_values"),
        *fields(ctypes.c_int64, "new_head new_token"),
        *fields(HeldTable, "keys values"),
        *fields(Int, "kv_heads head_dim tokens start"),
    ]


class ChunkTable(ctypes.Structure):
    _fields_ = [
        ("query", Address),
        *fields(ctypes.c_int64, "query_head query_token"),
        ("out", Address),
        *fields(HeldTable, "keys values"),
        *fields(Int, "kv_heads group head_dim tokens seen window"),
        ("scale", Float),
        ("tiles", Address),
    ]


class ChunkAttention:
    """A chunk of a prompt over tokens as they lie in their slots."""

    def __init__(self, library: Library) -> None:
        self._functions = library.functions
        self._functions.scope_read_tiles.restype = ctypes.c_int64
        self._functions.scope_store.restype = self._functions.scope_read.restype = None
        self.tiles = torch.empty(0)  # of all layers, one after the other

    def store(self, store: SlotStore, keys: Tensor, values: Tensor, into: Parts) -> None:
        """Turned and packed as the store has it; keys, values: float32 [kv_heads, tokens, head_dim]."""
        assert keys.stride() == values.stride() and keys.stride(2) == 1, "they come out of one product"
        table = StoredTable(keys.data_ptr(), values.data_ptr(), *keys.stride()[:2], *held_tables(store, into))
        table.kv_heads, table.tokens, table.head_dim = keys.shape
        self._functions.scope_store(ctypes.byref(table), ctypes.c_int32(torch.get_num_threads()))

    def __call__(
        self, store: SlotStore, query: Tensor, held: Parts, scale: float, window: int | None
    ) -> Tensor:
        """softmax(scale * query @ keys^T) @ values, each token over those up to its own, `window` at most.

        All three, and the weights, are rounded: queries and keys to 13 and 14 bits, or, where keys lie turned
        and in 8 bits, to these; values and weights to 8.

        query: float32 [1, heads, tokens, head_dim], of the newest tokens
        held: the parts of keys and values, [kv_heads, seen, ...]
        returns [1, heads, tokens, head_dim], a view of [1, tokens, heads, head_dim]
        """
        query = query if query.stride(3) == 1 else query.contiguous()
        _, heads, tokens, head_dim = query.shape
        out = query.new_empty(1, tokens, heads, head_dim)
        kv_heads, seen = held[0].shape[:2]
        table = ChunkTable(
            query.data_ptr(), query.stride(1), query.stride(2), out.data_ptr(), *held_tables(store, held),
            kv_heads, heads // kv_heads, head_dim, tokens, seen, seen if window is None else window, scale,
        )  # fmt: skip
        table.tiles = self.room(kv_heads, head_dim, seen)
        self._functions.scope_read(ctypes.byref(table), ctypes.c_int32(torch.get_num_threads()))
        return out.transpose(1, 2)

    def room(self, kv_heads: int, head_dim: int, seen: int) -> int:
        """Where the tiles of one layer have room."""
        table = ChunkTable(kv_heads=kv_heads, head_dim=head_dim, seen=seen)
        needed = self._functions.scope_read_tiles(ctypes.byref(table))
        if needed > self.tiles.numel():
            self.tiles = torch.empty(0)  # not both at once
            self.tiles = torch.empty(needed)
        return self.tiles.data_ptr()


def held_tables(store: SlotStore, parts: Parts) -> Iterator[HeldTable]:
    """The tables of keys and values; parts: [kv_heads, tokens, ...], a head's tokens without gaps."""
    count = len(store.keys)
    for (numbers, *scales), turned in (
        (parts[:count], store.turns_keys),
        (parts[count:], store.turns_values),
    ):
        head = numbers.stride(0) // numbers.shape[2]
        where = scales[0].data_ptr() if scales else None
        yield HeldTable(numbers.data_ptr(), where, head, FORMATS[numbers.dtype], turned)
