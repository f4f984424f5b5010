"""Parts of a product, as the step takes them: activations rounded, then rows of some groups of a weight."""

import ctypes
from ctypes import c_int32, c_int64, c_void_p

import torch
from torch import Tensor

from scope_cli.native.layout import BLOCK, GROUP, ROUNDED_BYTES, Kind
from scope_cli.native.library import Library, weight_of


class Rows(ctypes.Structure):
    """Rows of activations, as products.h has them."""

    _fields_ = [
        ("rows", c_int32),
        ("blocks", c_void_p),
        ("values", c_void_p),
        ("stride", c_int64),
        ("bytes", c_void_p),
    ]


def some_products(
    native: Library,
    packed: Tensor,
    kind: Kind,
    shape: tuple[int, int],
    x: Tensor,
    groups: tuple[int, int] | None = None,
    bits: int = 16,
) -> Tensor:
    """x: float32 [rows, columns] to [rows, rows of the weight]; what is not in `groups` stays not a number"""
    rounds = native.functions.scope_round if bits == 16 else native.functions.scope_round_to_bytes
    rounds.argtypes = [c_void_p, c_int64, c_int32, c_int32, c_void_p]
    count, columns = x.shape
    blocks = torch.empty(count, -(-columns // BLOCK), ROUNDED_BYTES[bits], dtype=torch.uint8)
    rounds(x.data_ptr(), x.stride(0), count, columns, blocks.data_ptr())
    rows = Rows(count, None, x.data_ptr(), x.stride(0))
    setattr(rows, "blocks" if bits == 16 else "bytes", blocks.data_ptr())
    out = torch.full((count, shape[0]), torch.nan)
    multiply = native.functions.scope_multiply
    multiply.argtypes = [c_void_p, c_void_p, c_void_p, c_int64, c_int32, c_int32]
    weight = weight_of(packed, kind, *shape)
    first, last = groups or (0, -(-shape[0] // GROUP))
    multiply(ctypes.byref(weight), ctypes.byref(rows), out.data_ptr(), out.stride(0), first, last)
    return out
