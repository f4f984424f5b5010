"""An orthogonal matrix of equal entries over a head: turning with it twice is not turning at all."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor


def turn(x: Tensor, matrix: Tensor) -> Tensor:
    """x @ H over the last axis, [..., head_dim]; computed in H's dtype, returned in x's."""
    return (x.to(matrix.dtype) @ matrix).to(x.dtype)


@cache
def hadamard(size: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """[size, size]: Sylvester's Hadamard matrix over sqrt(size), symmetric and its own inverse.

    Where the size is no power of two it is made of blocks, each as large as the largest power of two that
    divides it.
    """
    import torch

    block = size & -size  # the largest power of two that divides it
    matrix = torch.ones(1, 1, dtype=torch.float64)
    while len(matrix) < block:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    whole = torch.block_diag(*[matrix / block**0.5] * (size // block))
    return whole.to(device, dtype)
