"""Rotary position embedding undone and done again, for policies that look behind it.

Channels pair up by halves: channel j of the rotated ones with channel j + rotated / 2, as in transformers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


def turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Turn the rotated channels of x, [..., head_dim]; cos, sin: [..., rotated / 2], broadcast against x."""
    import torch

    half = cos.shape[-1]
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat([first * cos - second * sin, second * cos + first * sin, rest], -1)


def unrotate(x: Tensor, positions: Tensor, inv_freq: Tensor | None) -> Tensor:
    """x as it was before its position was rotated into it; x: [..., head_dim], positions: [...]."""
    if inv_freq is None:
        return x
    angles = positions.to(x.dtype).unsqueeze(-1) * inv_freq.to(x.dtype)
    return turn(x, angles.cos(), -angles.sin())


def as_pairs(x: Tensor, inv_freq: Tensor) -> Tensor:
    """The rotated channels of x, [..., head_dim], as complex numbers, [..., rotated / 2]."""
    import torch

    half = inv_freq.shape[0]
    return torch.complex(x[..., :half], x[..., half : 2 * half])
