"""The newest ids in, the next logits out, in one call of C++: the step of a CPU.

It reads the weights and the cache's own tensors by address, and writes what the cache's layers write in a
step; evictions, scorers and the audit find the same tensors as ever.
"""

import ctypes
from typing import Any

import torch
from torch import Tensor, nn

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.layers import SlotLayer
from scope_cli.models.decoders import Decoder, LayerParts, NotInTable, Product, decoder_of
from scope_cli.native.layout import GROUP, Kind
from scope_cli.native.library import Library, Weight
from scope_cli.native.tables import Layer, Linear, Model, Rotation, Slots, address, addresses

FORMATS = {torch.float32: 0, torch.bfloat16: 1, torch.int8: 2, torch.uint8: 3}  # as slots.h numbers them
PLAIN = 16  # SCOPE_PLAIN of step.h
PLAIN_DTYPES = (torch.float32, torch.bfloat16)
NORMS = ("before_attention", "after_attention", "before_mlp", "after_mlp", "query_norm", "key_norm")
PRODUCTS = ("query", "key", "value", "output", "gate", "up", "down")


class NativeStep:
    """One forward of a decoder that `decoders.py` knows. Raises NotInTable for another one."""

    def __init__(self, model: Any, cache: ScopeCache, library: Library) -> None:
        self.cache = cache
        self._functions = functions_of(library)
        self._decoder = decoder_of(model)
        self._weights = Weights()
        _check(self._decoder, cache)
        self._layers = (Layer * len(self._decoder.layers))()
        self._rotations = (Rotation * len(self._decoder.rotations))()
        for into, one in zip(self._rotations, self._decoder.rotations, strict=True):
            into.frequencies, into.half = address(one.frequencies), len(one.frequencies)
            into.factor = one.factor
        for table, parts in zip(self._layers, self._decoder.layers, strict=True):
            self._fill_weights(table, parts)
        self._kept: list[Any] = []  # what the tables of slots point to
        self._fill_slots()
        self._model = self._table()
        self._made = ctypes.c_void_p(self._functions.scope_step_new(ctypes.byref(self._model)))

    def __del__(self) -> None:
        if made := getattr(self, "_made", None):
            self._functions.scope_step_free(made)

    def __call__(self, ids: Tensor) -> Tensor:
        """ids: [lanes, 1]; returns logits, float32 [lanes, vocab], zeros for lanes that do not run."""
        cache, decoder = self.cache, self._decoder
        if self._fitted != cache.fitted:
            self._fill_slots()
        for table, layer in zip(self._layers, cache.layers, strict=True):
            table.slots.used = layer.read_slots
        embedded = decoder.embedding(ids[:, 0]).float()
        if decoder.embedded != 1:
            embedded = embedded * decoder.embedded
        embedded = embedded.contiguous()
        lanes, running = len(ids), int(cache.running.sum())
        logits = torch.empty(running, decoder.head.last)
        self._functions.scope_step_run(
            self._made,
            address(embedded),
            address(cache.running),
            address(cache.next_position),
            address(cache.held),
            address(logits),
            torch.get_num_threads(),
        )
        if running == lanes:
            return logits
        every = logits.new_zeros(lanes, logits.shape[1])
        every[cache.runs] = logits
        return every

    @property
    def attention_s(self) -> float:
        """Seconds of all steps so far that went into attention."""
        return float(self._functions.scope_step_attention_s(self._made))

    def _table(self) -> Model:
        decoder, model = self._decoder, Model()
        model.layers, model.rotations = self._layers, self._rotations
        model.head = self._weights.linear(decoder.head)
        model.last_norm = address(decoder.last_norm)
        model.layer_count, model.rotation_count = len(self._layers), len(self._rotations)
        model.lanes, model.hidden = self.cache.shape.lanes, len(decoder.last_norm)
        model.epsilon, model.residual = decoder.epsilon, decoder.residual
        model.logit_factor, model.logit_cap = decoder.logit_factor, decoder.logit_cap
        return model

    def _fill_weights(self, table: Layer, parts: LayerParts) -> None:
        for name in NORMS:
            setattr(table, name, address(getattr(parts, name)))
        for name in PRODUCTS:
            setattr(table, name, self._weights.linear(getattr(parts, name)))
        table.norms_all_heads = self._decoder.norms_all_heads
        table.rotation = -1 if parts.rotation is None else parts.rotation
        table.activation, table.cap = parts.activation, parts.cap

    def _fill_slots(self) -> None:
        """The tables' part that changes with a cache's buffers."""
        self._kept.clear()
        for table, layer in zip(self._layers, self.cache.layers, strict=True):
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
        self._fitted = self.cache.fitted


class Weights:
    """The tables of linear layers; what is made for them is kept here."""

    def __init__(self) -> None:
        self._biases: list[Tensor] = []

    def linear(self, product: Product) -> Linear:
        linear, table = product.linear, Linear()
        rows = product.last - product.first
        if isinstance(kind := getattr(linear, "kind", None), Kind):
            part = linear.packed[product.first // GROUP : -(-product.last // GROUP)]
        else:
            part = linear.weight.detach()[product.first : product.last]
            kind = PLAIN + FORMATS[part.dtype]
        table.weight = Weight(kind, rows, linear.in_features, 0, address(part))
        if linear.bias is not None:
            bias = linear.bias.detach().float()[product.first : product.last].contiguous()
            self._biases.append(bias)
            table.bias = address(bias)
        return table


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


def _check(decoder: Decoder, cache: ScopeCache) -> None:
    """What C++ takes for granted."""
    dtype = str(cache.dtype).removeprefix("torch.")
    if cache.device.type != "cpu" or cache.dtype not in PLAIN_DTYPES:
        raise NotInTable(f"it has no slots in {dtype} on {cache.device.type}")
    sizes = {(layer.heads, layer.kv_heads, layer.head_dim) for layer in cache.geometry.layers}
    if len(sizes) != 1 or len(cache.layers) != len(decoder.layers):
        raise NotInTable("its layers are not of one size")
    for parts in decoder.layers:
        for product in [getattr(parts, name) for name in PRODUCTS]:
            linear = product.linear
            plain = type(linear) is nn.Linear and linear.weight.dtype in PLAIN_DTYPES
            if not plain and not isinstance(getattr(linear, "kind", None), Kind):
                raise NotInTable(f"it has no products with a {type(linear).__name__} like its own")
            if product.first % GROUP and not plain:
                raise NotInTable(f"a fused matrix is not cut at a multiple of {GROUP} rows")
