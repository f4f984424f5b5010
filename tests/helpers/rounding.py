"""Activations as a packed product sees them, rows as a prompt's attention does."""

import torch
from torch import Tensor


def rounded(x: Tensor, bits: int = 16) -> Tensor:
    """What so many bits hold of each block of 32, float64; scales are made in float32, as C++ makes them.

    x: float32 [..., columns]
    """
    most = 2 ** (bits - 1) - 1
    filled = torch.nn.functional.pad(x, (0, -x.shape[-1] % 32)).unflatten(-1, (-1, 32))
    largest = filled.abs().amax(-1, keepdim=True)
    whole = (filled * (most / largest)).nan_to_num_(0).round().double()
    return (whole * (largest / most).double()).flatten(-2)[..., : x.shape[-1]]


def rounded_rows(rows: Tensor, most: int) -> Tensor:
    """What whole numbers up to `most` hold of each row, float64."""
    largest = rows.abs().amax(-1, keepdim=True)
    return (rows * (most / largest)).nan_to_num(0).round().double() * (largest / most).double()


def as_attended(query: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """What a prompt's attention multiplies, float64; keys take what 32 bits of a head's sum leave them."""
    wide = -(-query.shape[-1] // 16) * 16
    most_key = min(8191, (2**31 - 1) // 4095 // wide)
    return rounded_rows(query, 4095), rounded_rows(keys, most_key), rounded_rows(values, 127)
