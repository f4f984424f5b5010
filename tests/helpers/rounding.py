"""Activations as a packed product sees them."""

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
