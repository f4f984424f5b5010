"""The newest ids in, the next logits out, in one call of C++: the step of a CPU.

It reads the weights and the cache's own tensors by address, and writes what the cache's layers write in a
step; evictions, scorers and the audit find the same tensors as ever.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.layers import SlotLayer
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.cache.store import by_numbers
from scope_cli.models.native_tables import DecoderTables
from scope_cli.native.library import Library
from scope_cli.native.tables import FORMATS, Slots, address, addresses


class NativeStep:
    """One forward of a decoder that `decoders.py` knows. Raises NotInTable for another one."""

    def __init__(self, model: Any, cache: ScopeCache, library: Library) -> None:
        self.cache = cache
        self._functions = functions_of(library)
        self._tables = DecoderTables(model, cache, library)
        self._kept: list[Any] = []  # what the tables of slots point to
        self._running = by_numbers(cache.running)
        self._now: list[int] = []  # as the tables have it: is attention asked for, and how much is read
        self._fill_slots()
        self._made = ctypes.c_void_p(self._functions.scope_step_new(ctypes.byref(self._tables.model)))

    def __del__(self) -> None:
        if made := getattr(self, "_made", None):
            self._functions.scope_step_free(made)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, float32 [lanes, vocab], zeros for lanes that do not run."""
        cache, tables = self.cache, self._tables
        if self._fitted != cache.fitted:
            self._fill_slots()
        asks = self._tells and cache.asks_attention
        now = [asks, *[layers[0].read_slots for layers in cache.alike]]
        if now != self._now:
            self._now = now
            for table, layer, told in zip(tables.layers, cache.layers, self._told, strict=True):
                table.slots.used = layer.read_slots
                table.attention = told if asks else None
        embedded = tables.embedded(ids)
        lanes, running = len(ids), sum(self._running)
        logits = torch.empty(running, tables.decoder.head.last)
        self._functions.scope_step_run(
            self._made,
            address(embedded),
            address(cache.running),
            address(cache.next_position),
            address(cache.held),
            address(logits),
            torch.get_num_threads(),
        )
        cache.told = asks
        if running == lanes:
            return logits
        every = logits.new_zeros(lanes, logits.shape[1])
        every[cache.runs] = logits
        return every

    @property
    def attention_s(self) -> float:
        """Seconds of all steps so far that went into attention."""
        return float(self._functions.scope_step_attention_s(self._made))

    def _fill_slots(self) -> None:
        """The tables' part that changes with a cache's buffers."""
        self._kept.clear()
        for table, layer in zip(self._tables.layers, self.cache.layers, strict=True):
            tensors = layer.tensors()
            table.slots = _slots(layer, tensors, layer.slots)
            table.exact = _slots(layer, tensors, layer.exact.tokens, "exact.") if layer.exact else Slots()
            table.positions = address(tensors["positions"])
            table.exact_slots = address(tensors.get("exact.slots"))
            table.scale, table.plain_format = layer.scale, FORMATS[self.cache.dtype]
            queries, vacant = tensors.get("queries"), tensors.get("vacant")
            table.queries, table.vacant = address(queries), address(vacant)
            table.ring = 0 if queries is None else queries.shape[2]
            table.evictable = 0 if vacant is None else vacant.shape[2]
            table.window = layer.most_held
            memos = addresses(memo for name, memo in tensors.items() if name.startswith("memos."))
            table.memos = ctypes.addressof(memos)
            table.memo_count = sum(name.startswith("memos.") for name in tensors)
            self._kept += [tensors, memos]
        self._told = [
            address(layer.own.told) if isinstance(layer, PolicyLayer) else None for layer in self.cache.layers
        ]
        # A cap, or exact tokens beside the slots, are no part of what a scorer calls attention.
        self._tells = not any(
            table.cap or layer.exact
            for table, layer in zip(self._tables.layers, self.cache.layers, strict=True)
        )
        self._fitted = self.cache.fitted
        self._now = []


def functions_of(library: Library) -> Any:
    functions = library.functions
    functions.scope_step_new.restype = ctypes.c_void_p
    functions.scope_step_new.argtypes = [ctypes.c_void_p]
    functions.scope_step_attention_s.restype = ctypes.c_double
    functions.scope_step_attention_s.argtypes = [ctypes.c_void_p]
    functions.scope_step_free.argtypes = [ctypes.c_void_p]
    functions.scope_step_run.argtypes = [*[ctypes.c_void_p] * 6, ctypes.c_int32]
    functions.scope_step_free.restype = functions.scope_step_run.restype = None
    return functions


def _slots(layer: SlotLayer, tensors: dict[str, Tensor], slots: int, whose: str = "") -> Slots:
    """whose: the beginning of their names"""
    geometry, table = layer.geometry, Slots()
    for side in ("key", "value"):
        numbers = tensors[f"{whose}{side}s"]
        scales = tensors.get(f"{whose}{side}_scales", tensors.get(f"{whose}{side}_groups"))
        setattr(table, f"{side}s", address(numbers))
        setattr(table, f"{side}_scales", address(scales))
        setattr(table, f"{side}_format", FORMATS[numbers.dtype])
        setattr(table, f"turns_{side}s", getattr(layer.store, f"turns_{side}s"))
    bias = tensors[f"{whose}bias"]
    table.bias, table.bias_format = address(bias), FORMATS[bias.dtype]
    table.kv_heads, table.head_dim = geometry.kv_heads, geometry.head_dim
    table.group = geometry.heads // geometry.kv_heads
    table.slots = table.used = slots
    return table
