"""Rows of activations and a packed matrix in, their product out: by the library, else in plain PyTorch.

The product is an operator of torch, so that a compiled graph can hold it.
"""

import torch
from torch import Tensor

from scope_cli.native.layout import GROUP, Kind
from scope_cli.native.library import library, weight_of
from scope_cli.native.weights import stretches, unpack, unpack_rows

OPERATORS = torch.library.Library("scope", "DEF")
OPERATORS.define("product(Tensor x, Tensor packed, Tensor? bias, int kind, int rows) -> Tensor")


def product(x: Tensor, packed: Tensor, bias: Tensor | None, kind: Kind, rows: int) -> Tensor:
    """x: [..., columns], any floats, to [..., rows] in x's dtype

    packed: uint8 [groups, blocks, bytes of a block]; bias: float32 [rows]
    """
    flat = x.reshape(-1, x.shape[-1]).float()
    out = torch.ops.scope.product(flat, packed, bias, int(kind), rows)
    return out.to(x.dtype).view(*x.shape[:-1], rows)


def rows_of(packed: Tensor, kind: Kind, columns: int, ids: Tensor) -> Tensor:
    """ids: int64 [...] to float32 [..., columns]; packed: uint8 [groups, blocks, bytes]"""
    flat = ids.flatten()
    native = library()
    if native is None:
        found = unpack_rows(packed, kind, columns, flat)
    else:
        found = native.unpack(weight_of(packed, kind, packed.shape[0] * GROUP, columns), flat.contiguous())
    return found.view(*ids.shape, columns)


def _product(x: Tensor, packed: Tensor, bias: Tensor | None, kind: int, rows: int) -> Tensor:
    """x: float32 [count, columns]"""
    native, columns = library(), x.shape[1]
    if native is not None:
        if x.stride(1) != 1:
            x = x.contiguous()
        return native.product(weight_of(packed, Kind(kind), rows, columns), x, bias)
    out = torch.empty(x.shape[0], rows)
    for first, last in stretches(rows, columns):
        part = unpack(packed[first // GROUP : -(-last // GROUP)], Kind(kind), last - first, columns)
        out[:, first:last] = x @ part.T
    return out if bias is None else out.add_(bias)


def _shape(x: Tensor, packed: Tensor, bias: Tensor | None, kind: int, rows: int) -> Tensor:
    return x.new_empty(x.shape[0], rows)


OPERATORS.impl("product", _product, "CPU")
OPERATORS.impl("product", _shape, "Meta")
