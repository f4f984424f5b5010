"""Blocks of a GGUF type in, codes as our packed matrices have them out: ggml's layouts (ggml-common.h).

Q4_0, Q4_1 and Q4_K are held exactly in 4 bits, but for the rounding of Q4_K's scales; Q8_0, Q5_0 and Q4_0
exactly in 8 bits. Everything else is rounded from its numbers.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scope_cli.native.layout import BLOCK, Kind
from scope_cli.native.weights import Codes, in_blocks, round_to_4, round_to_8

Exact = Callable[[Tensor], "Scaled"]


class Scaled(NamedTuple):
    """Codes with the scales that the file has, in float32."""

    codes: Tensor  # uint8 or int8 [rows, blocks, BLOCK]
    scale: Tensor  # float32 [rows, blocks]
    minimum: Tensor | None


def codes_of(
    raw: NDArray[np.uint8], type_name: str, numbers: Callable[[], Tensor], kind: Kind
) -> tuple[Codes, Tensor]:
    """Codes of some rows, and the rows as the file means them, float32 [rows, blocks, BLOCK].

    raw: [rows, bytes of a row]; `numbers` dequantises them, [rows, columns]
    """
    exact = EXACT.get((type_name, kind))
    if exact is not None:
        own = exact(torch.from_numpy(raw))
        meant = own.codes.float() * own.scale.unsqueeze(2)
        if own.minimum is not None:
            meant += own.minimum.unsqueeze(2)
        minimum = None if own.minimum is None else own.minimum.half()
        return Codes(own.codes, own.scale.half(), minimum), meant
    meant = in_blocks(numbers(), 1)
    return (round_to_4 if kind is Kind.INT4 else round_to_8)(meant), meant


def _halves(blocks: Tensor, start: int) -> Tensor:
    """A float16 of each block, as float32."""
    return blocks[..., start : start + 2].contiguous().view(torch.float16).squeeze(-1).float()


def _nibbles(pairs: Tensor) -> Tensor:
    """[..., 16] to [..., BLOCK]: lower halves first."""
    return torch.cat([pairs & 15, pairs >> 4], -1)


def _q4_0(raw: Tensor) -> Scaled:
    blocks = raw.unflatten(1, (-1, 18))
    scale = _halves(blocks, 0)
    return Scaled(_nibbles(blocks[..., 2:]), scale, -8 * scale)


def _q4_1(raw: Tensor) -> Scaled:
    blocks = raw.unflatten(1, (-1, 20))
    return Scaled(_nibbles(blocks[..., 4:]), _halves(blocks, 0), _halves(blocks, 2))


def _q4_k(raw: Tensor) -> Scaled:
    """256 weights: eight blocks, whose scales and minima have 6 bits each and share a scale."""
    blocks = raw.unflatten(1, (-1, 144))
    packed = blocks[..., 4:16]
    first, second, third = packed[..., :4], packed[..., 4:8], packed[..., 8:]
    scales = torch.cat([first & 63, (third & 15) | (first >> 6 << 4)], -1)
    minima = torch.cat([second & 63, (third >> 4) | (second >> 6 << 4)], -1)
    pairs = blocks[..., 16:].unflatten(-1, (4, BLOCK))
    codes = torch.stack([pairs & 15, pairs >> 4], -2)  # [rows, superblocks, 4, 2, BLOCK]
    scale = _halves(blocks, 0).unsqueeze(-1) * scales.float()
    minimum = -_halves(blocks, 2).unsqueeze(-1) * minima.float()
    return Scaled(codes.flatten(1, 3), scale.flatten(1), minimum.flatten(1))


def _q8_0(raw: Tensor) -> Scaled:
    blocks = raw.unflatten(1, (-1, 34))
    return Scaled(blocks[..., 2:].contiguous().view(torch.int8), _halves(blocks, 0), None)


def _q4_0_in_8(raw: Tensor) -> Scaled:
    own = _q4_0(raw)
    return Scaled(own.codes.view(torch.int8) - 8, own.scale, None)


def _q5_0(raw: Tensor) -> Scaled:
    """The fifth bits of a block's 32 codes come before the four others."""
    blocks = raw.unflatten(1, (-1, 22))
    fifth = blocks[..., 2:6].unsqueeze(-1) >> torch.arange(8, dtype=torch.uint8) & 1
    codes = _nibbles(blocks[..., 6:]) | fifth.flatten(-2) << 4
    return Scaled(codes.view(torch.int8) - 16, _halves(blocks, 0), None)


EXACT: dict[tuple[str, Kind], Exact] = {
    ("Q4_0", Kind.INT4): _q4_0,
    ("Q4_1", Kind.INT4): _q4_1,
    ("Q4_K", Kind.INT4): _q4_k,
    ("Q8_0", Kind.INT8): _q8_0,
    ("Q5_0", Kind.INT8): _q5_0,
    ("Q4_0", Kind.INT8): _q4_0_in_8,
}
