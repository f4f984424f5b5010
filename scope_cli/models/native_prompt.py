"""A prompt's chunk in, the logits of its last token out: products, norms, rotation and attention in C++.

Where all layers hold a prompt as it comes, one call reads a chunk: PyTorch between two calls takes long, for
the CPU's caches are full of weights. Else keys and values are stored by the cache's own layers, and attention
is theirs, as it is under transformers' modules; so every way to hold a prompt works. It is for models whose
layers are all packed: plain products of many rows are faster in PyTorch.
"""

import ctypes
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.layers import Chunk
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.cache.staging import Staging
from scope_cli.models.attention import read_chunk
from scope_cli.models.decoders import NotInTable
from scope_cli.models.native_tables import PRODUCTS, DecoderTables
from scope_cli.native.layout import Kind
from scope_cli.native.library import Library
from scope_cli.native.reading import ChunkAttention, HeldTable, held_tables
from scope_cli.native.tables import Address, address

Reader = Callable[[Tensor, Tensor, ScopeCache | Staging], Tensor]  # ids, positions, who holds them: logits


def reader_of(model: Any, cache: ScopeCache, library: Library | None) -> Reader:
    """In C++ where there is a library that knows the model; else through the model's own layers."""
    if library is not None:
        with suppress(NotInTable):
            return NativePrompt(model, cache, library)

    def read(ids: Tensor, positions: Tensor, held: ScopeCache | Staging) -> Tensor:
        out: Tensor = model(
            input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, scope_cache=held
        ).logits
        return out[:, -1]

    return read


class LaneLayer(ctypes.Structure):
    _fields_ = [("keys", HeldTable), ("values", HeldTable), ("queries", Address)]


class NativePrompt:
    """One forward of a decoder that `decoders.py` knows. Raises NotInTable for another one."""

    def __init__(self, model: Any, cache: ScopeCache, library: Library) -> None:
        self._functions, self._attention = functions_of(library), ChunkAttention(library)
        self._tables = tables = DecoderTables(model, cache, library)
        parts = tables.decoder.layers
        linears = [getattr(layer, name).linear for layer in parts for name in PRODUCTS]
        if not all(isinstance(getattr(linear, "kind", None), Kind) for linear in linears):
            raise NotInTable("its weights are not packed")
        if cache.dtype != torch.float32 or any(layer.cap for layer in parts):
            raise NotInTable("its attention is not plain float32")
        geometry = cache.geometry.layers[0]
        for table, layer in zip(tables.layers, cache.layers, strict=True):
            table.scale = layer.scale
            table.slots.kv_heads, table.slots.head_dim = geometry.kv_heads, geometry.head_dim
            table.slots.group = geometry.heads // geometry.kv_heads
        self._heads = [geometry.heads, geometry.kv_heads, geometry.kv_heads]
        self._head_dim = geometry.head_dim
        self._made = ctypes.c_void_p(self._functions.scope_prompt_new(ctypes.byref(tables.model)))

    def __del__(self) -> None:
        if made := getattr(self, "_made", None):
            self._functions.scope_prompt_free(made)

    def __call__(self, ids: Tensor, positions: Tensor, held: ScopeCache | Staging) -> Tensor:
        """ids, positions: [1, tokens], of the chunk that `held` has started; returns [1, vocab]."""
        tokens, threads, functions = ids.shape[1], torch.get_num_threads(), self._functions
        embedded = self._tables.embedded(ids)
        functions.scope_prompt_begin(
            self._made, address(embedded), address(positions.contiguous()), tokens, threads
        )
        del embedded  # C++ has its own
        assert held.chunk is not None, "no chunk was started"
        whole = [layer for layer in held.layers if isinstance(layer, PolicyLayer)]
        if len(whole) == len(held.layers) and not whole[0].counts_received:
            self._read_at_once(whole, held.chunk, threads)
        else:
            self._read_by_layers(held, threads)
        logits = torch.empty(1, self._tables.decoder.head.last)
        functions.scope_prompt_logits(self._made, address(logits), threads)
        return logits

    def _read_at_once(self, layers: list[PolicyLayer], chunk: Chunk, threads: int) -> None:
        heads, kv_heads, _ = self._heads
        kept = min(chunk.tokens, layers[0].queries.shape[2])
        queries = torch.empty(len(layers), 1, heads, kept, self._head_dim)
        lane = (LaneLayer * len(layers))(
            *(
                LaneLayer(*held_tables(layer.store, layer.take(chunk)), address(own))
                for layer, own in zip(layers, queries, strict=True)
            )
        )
        room = self._attention.room(kv_heads, self._head_dim, chunk.end)
        self._functions.scope_prompt_read(self._made, lane, chunk.start, kept, room, threads)
        newest = replace(chunk, start=chunk.end - kept, tokens=kept)
        for layer, own in zip(layers, queries, strict=True):
            layer.remember(own, newest)

    def _read_by_layers(self, held: ScopeCache | Staging, threads: int) -> None:
        assert held.chunk is not None, "no chunk was started"
        functions, tokens = self._functions, held.chunk.tokens
        for number, layer in enumerate(held.layers):
            asked = tokens if number + 1 < len(held.layers) else 1  # the last one gives only the logits
            projected = torch.empty(1, tokens, sum(self._heads), self._head_dim)  # somebody may keep it
            functions.scope_prompt_project(self._made, number, address(projected), threads)
            query, key, value = projected.transpose(1, 2).split(self._heads, 1)
            attended = read_chunk(layer, held.chunk, query, key, value, asked, self._attention)
            attended = attended.transpose(1, 2).contiguous()
            functions.scope_prompt_mix(self._made, number, address(attended), asked, threads)
            del projected, query, key, value, attended  # before the next layer's are made


def functions_of(library: Library) -> Any:
    functions, pointer, number = library.functions, ctypes.c_void_p, ctypes.c_int32
    functions.scope_prompt_new.restype, functions.scope_prompt_new.argtypes = pointer, [pointer]
    functions.scope_prompt_free.restype, functions.scope_prompt_free.argtypes = None, [pointer]
    functions.scope_prompt_begin.argtypes = [pointer, pointer, pointer, number, number]
    functions.scope_prompt_project.argtypes = [pointer, number, pointer, number]
    functions.scope_prompt_mix.argtypes = [pointer, number, pointer, number, number]
    functions.scope_prompt_read.argtypes = [pointer, pointer, number, number, pointer, number]
    functions.scope_prompt_logits.argtypes = [pointer, pointer, number]
    for name in ("begin", "project", "mix", "read", "logits"):
        getattr(functions, f"scope_prompt_{name}").restype = None
    return functions
