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


def as_attended(
    query: Tensor, keys: Tensor, values: Tensor, most_query: int = 4095
) -> tuple[Tensor, Tensor, Tensor]:
    """What a prompt's attention multiplies, float64; keys take what 32 bits of a head's sum leave them."""
    wide = -(-query.shape[-1] // 16) * 16
    most_key = min(8191, (2**31 - 1) // 4095 // wide)
    return rounded_rows(query, most_query), rounded_rows(keys, most_key), rounded_rows(values, 127)


def attended(
    query: Tensor, keys: Tensor, values: Tensor, sees: Tensor, scale: float, most_query: int = 4095
) -> Tensor:
    """softmax(scale * query @ keys^T) @ values of rounded numbers, float64; weights are rounded, too.

    query: float32 [..., heads, tokens, head_dim]; keys, values: float32 [..., kv_heads, seen, head_dim]
    sees: bool [tokens, seen]
    A query's weights in a tile of 64 tokens, times what one of a value's numbers stands for, are whole
    numbers up to 255. What they are divided by in the end are the weights as they were.
    """
    steps = values.abs().amax(-1, keepdim=True).double() / 127
    query, keys, values = as_attended(query, keys, values, most_query)
    numbers = (values / steps).nan_to_num(0)
    group = query.shape[-3] // keys.shape[-3]
    keys, numbers, steps = (part.repeat_interleave(group, -3) for part in (keys, numbers, steps))
    logits = (scale * query @ keys.mT).masked_fill(~sees, -torch.inf)
    missing = -logits.shape[-1] % 64
    tiles = torch.nn.functional.pad(logits, (0, missing), value=-torch.inf).unflatten(-1, (-1, 64))
    own = torch.nn.functional.pad(steps.mT, (0, missing)).unflatten(-1, (-1, 64))
    largest = tiles.amax(-1, keepdim=True)
    weights = (tiles - largest).exp().nan_to_num(0)  # a tile of which nothing is seen
    scaled = weights * own
    heaviest = scaled.amax(-1, keepdim=True)
    shares = (scaled * (255 / heaviest)).nan_to_num(0).round() * (heaviest / 255)
    in_all = (largest - largest.amax(-2, keepdim=True)).exp()
    shares, total = shares * in_all, (weights * in_all).sum((-2, -1))
    return shares.flatten(-2)[..., : logits.shape[-1]] @ numbers / total.unsqueeze(-1)
