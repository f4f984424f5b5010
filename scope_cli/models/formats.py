"""The forms that weights are held in, and the bytes that each takes. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

Bits = Literal[4, 8]
Shape = tuple[int, ...]

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
BITS: dict[str, Bits] = {"int4": 4, "int8": 8}  # packed, for a CPU
BLOCK = 32  # weights that share a scale and a minimum
ROWS = 64  # of a matrix that the kernel takes together; a matrix that they do not divide stays plain
UNPACKED_FROM = 128  # rows of input from which multiplying with the unpacked weight is faster
BITSANDBYTES = {"8bit": 1.0, "4bit": 0.5625}  # bytes a weight; 4bit: half a byte, and a float32 scale for 64
UNQUANTISED = {"F64", "F32", "F16", "BF16"}  # types of GGUF
FOUR_BITS = {"Q4_0", "Q4_1", "Q4_K"}  # int4 changes less than 1 in 100 of them (models/gguf/test_packing.py)


def packed_form(quantised: str | None) -> str | None:
    """How a CPU holds what came from a GGUF file whose layers have these types ("Q4_K, Q6_K"); None: plain.

    int4 loses nothing but the rounding of scales of a file that is 4 bits throughout; int8 holds the others.
    """
    types = set(quantised.split(", ")) if quantised else set()
    if types <= UNQUANTISED:
        return None
    return "int4" if types <= FOUR_BITS else "int8"


def packs(shape: Shape) -> bool:
    """Whether a matrix, [out, in], can be packed."""
    return len(shape) == 2 and not shape[0] % ROWS and not shape[1] % BLOCK


def linear_bytes(weights: int, bits: int) -> int:
    """A packed matrix: its codes, and a scale and a zero of each block, for every 4 bits."""
    return bits // 4 * (weights // 2 + weights // BLOCK * 4)


def table_bytes(weights: int) -> int:
    """A packed embedding: codes of 8 bits, and a scale of each block."""
    return weights + weights // BLOCK * 2


def plain_bytes(shapes: Iterable[tuple[str, Shape]], dtype_bytes: float, load_in: str | None = None) -> int:
    """Bytes of weights of these (name, shape).

    Exact for a plain dtype. With `load_in` an estimate: bitsandbytes quantises the matrices of linear layers.
    """
    total = 0.0
    for tensor, shape in shapes:
        linear = len(shape) == 2 and "embed" not in tensor and "lm_head" not in tensor
        total += prod(shape) * (BITSANDBYTES[load_in] if load_in and linear else dtype_bytes)
    return int(total)


def packed_bytes(
    shapes: Iterable[tuple[str, Shape]], dtype_bytes: int, bits: Bits, scales_embedding: bool
) -> int:
    """Bytes of these weights once their linear layers are packed; without lm_head, the table is the head.

    A head, and a table that is the head as well, have 8 bits; the table is kept beside it, 8 bits as well
    where it is a plain one.
    """
    weights = dict(shapes)
    tied = not any("lm_head" in name for name in weights)
    total = 0
    for name, shape in weights.items():
        count = prod(shape)
        table = "embed_tokens" in name
        if packs(shape) and is_linear(name, shape):
            total += linear_bytes(count, bits)
        elif packs(shape) and ("lm_head" in name or (table and tied)):
            total += linear_bytes(count, 8)  # the head
            if table:
                total += dtype_bytes * count if scales_embedding else table_bytes(count)
        else:
            total += dtype_bytes * count
    return total


def is_linear(name: str, shape: Shape) -> bool:
    """A linear layer's matrix, lm_head apart."""
    others = ("embed", "lm_head", "projector", "input_projection")
    return len(shape) == 2 and not any(other in name for other in others)
