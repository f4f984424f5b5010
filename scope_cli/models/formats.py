"""The forms that weights are held in, and the bytes that each takes. No torch."""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Literal

from scope_cli.native import layout
from scope_cli.native.layout import Kind

Bits = Literal[4, 8]
Shape = tuple[int, ...]

DTYPE_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
BITS: dict[str, Bits] = {"int4": 4, "int8": 8}  # packed, for a CPU
KINDS: dict[Bits, Kind] = {4: Kind.INT4, 8: Kind.INT8}
HEAD_KIND = Kind.INT8  # of lm_head, whose error goes straight into the logits, and of the tokens' table
FEWEST_ROWS = 64  # a matrix of fewer stays plain: it takes little, and may be what chooses experts
BITSANDBYTES = {"8bit": 1.0, "4bit": 0.5625}  # bytes a weight; 4bit: half a byte, and a float32 scale for 64
UNQUANTISED = {"F64", "F32", "F16", "BF16"}  # types of GGUF
FOUR_BITS = {"Q4_0", "Q4_1", "Q4_K"}  # int4 changes less than 1 in 100 of them (models/gguf/test_packing.py)


def packed_form(quantised: str | None) -> str | None:
    """How a CPU holds what came from a GGUF file whose layers have these types ("Q4_K, Q6_K"); None: plain.

    int4 loses nothing of a file that is 4 bits throughout, but for the rounding of Q4_K's scales; int8 holds
    the others.
    """
    types = set(quantised.split(", ")) if quantised else set()
    if types <= UNQUANTISED:
        return None
    return "int4" if types <= FOUR_BITS else "int8"


def packs(shape: Shape) -> bool:
    """Whether a matrix, [out, in], is packed."""
    return len(shape) == 2 and shape[0] >= FEWEST_ROWS


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
    """Bytes of these weights once they are packed; without lm_head, the table is the head.

    A table that is scaled is a class of its own, and stays plain.
    """
    weights = dict(shapes)
    tied = not any("lm_head" in name for name in weights)
    total = 0
    for name, shape in weights.items():
        table = "embed_tokens" in name
        if packs(shape) and is_linear(name, shape):
            total += layout.packed_bytes(KINDS[bits], *shape)
        elif packs(shape) and ("lm_head" in name or (table and (tied or not scales_embedding))):
            total += layout.packed_bytes(HEAD_KIND, *shape)
            if table and scales_embedding:
                total += dtype_bytes * prod(shape)
        else:
            total += dtype_bytes * prod(shape)
    return total


def is_linear(name: str, shape: Shape) -> bool:
    """A linear layer's matrix, lm_head apart."""
    others = ("embed", "lm_head", "projector", "input_projection")
    return len(shape) == 2 and not any(other in name for other in others)
