"""A decoder's weights as the tables of step.h, which C++ reads by address."""

from typing import Any

import torch
from torch import Tensor, nn

from scope_cli.cache.cache import ScopeCache
from scope_cli.models.decoders import Decoder, LayerParts, NotInTable, Product, decoder_of
from scope_cli.models.packed import PackedEmbedding
from scope_cli.native.layout import GROUP, Kind
from scope_cli.native.library import Library, Weight, weight_of
from scope_cli.native.tables import FORMATS, PLAIN, PLAIN_DTYPES, Layer, Linear, Model, Rotation, address

NORMS = ("before_attention", "after_attention", "before_mlp", "after_mlp", "query_norm", "key_norm")
PRODUCTS = ("query", "key", "value", "output", "gate", "up", "down")


class DecoderTables:
    """All that a model's own tensors fill; slots are filled by whoever reads them. Raises NotInTable."""

    def __init__(self, model: Any, cache: ScopeCache, library: Library) -> None:
        self.decoder = decoder = decoder_of(model)
        self._library, self._table = library, _packed_table(decoder.embedding)
        _check(decoder, cache)
        self._biases: list[Tensor] = []  # which were made for the tables
        self.layers = (Layer * len(decoder.layers))()
        self._rotations = (Rotation * len(decoder.rotations))()
        for into, one in zip(self._rotations, decoder.rotations, strict=True):
            into.frequencies, into.half = address(one.frequencies), len(one.frequencies)
            into.factor = one.factor
        for table, parts in zip(self.layers, decoder.layers, strict=True):
            self._fill(table, parts)
        self.model = Model()
        self.model.layers, self.model.rotations = self.layers, self._rotations
        self.model.head = self._linear(decoder.head)
        self.model.last_norm = address(decoder.last_norm)
        self.model.layer_count, self.model.rotation_count = len(self.layers), len(self._rotations)
        self.model.lanes, self.model.hidden = cache.shape.lanes, len(decoder.last_norm)
        self.model.epsilon, self.model.residual = decoder.epsilon, decoder.residual
        self.model.logit_factor, self.model.logit_cap = decoder.logit_factor, decoder.logit_cap

    def embedded(self, ids: Tensor) -> Tensor:
        """ids: [lanes, tokens], of which one is 1, to float32 [lanes * tokens, hidden]"""
        if self._table is None:
            rows: Tensor = self.decoder.embedding(ids.flatten()).float().contiguous()
        else:
            rows = self._library.unpack(self._table, ids.contiguous())
        return rows if self.decoder.embedded == 1 else rows * self.decoder.embedded

    def _fill(self, table: Layer, parts: LayerParts) -> None:
        for name in NORMS:
            setattr(table, name, address(getattr(parts, name)))
        for name in PRODUCTS:
            setattr(table, name, self._linear(getattr(parts, name)))
        table.norms_all_heads = self.decoder.norms_all_heads
        table.rotation = -1 if parts.rotation is None else parts.rotation
        table.activation, table.cap = parts.activation, parts.cap

    def _linear(self, product: Product) -> Linear:
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


def _packed_table(embedding: nn.Module) -> Weight | None:
    """What its rows are unpacked from without calling any module: after a step that takes 0.2 ms longer."""
    if not isinstance(embedding, PackedEmbedding) or embedding.dtype != torch.float32:
        return None
    return weight_of(embedding.packed, embedding.kind, embedding.num_embeddings, embedding.embedding_dim)


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
