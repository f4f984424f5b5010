"""How much attention each token of a prompt gets from queries: H2O's heavy hitters are counted in it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

QUERY_BLOCK = 128  # rows of attention that are computed at a time


def received(queries: Tensor, keys: Tensor, start: int, scale: float) -> Tensor:
    """Attention that each key gets from these queries, each of which sees the keys up to its own.

    queries: [heads, tokens, head_dim], the first at position `start`
    keys: [kv_heads, end, head_dim], by position
    returns [kv_heads, end], summed over the queries, a mean over the group, in at least float32; never more
    than QUERY_BLOCK rows of attention at a time
    """
    import torch

    precise = torch.promote_types(keys.dtype, torch.float32)
    grouped = queries.to(precise).unflatten(0, (keys.shape[0], -1))  # [kv_heads, group, tokens, head_dim]
    keys = keys.to(precise)
    total = keys.new_zeros(keys.shape[:2])
    for block in grouped.split(QUERY_BLOCK, 2):
        end = start + block.shape[2]
        logits = block.flatten(1, 2) @ keys[:, :end].transpose(1, 2) * scale
        logits = logits.unflatten(1, block.shape[1:3])  # [kv_heads, group, block, end]
        at = torch.arange(end, device=keys.device)
        later = at > at[start:, None]
        total[:, :end] += logits.masked_fill_(later, -torch.inf).softmax(-1).mean(1).sum(1)
        start = end
    return total
