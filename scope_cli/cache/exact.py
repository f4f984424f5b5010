"""The newest tokens as they are, beside their packed selves.

A token is packed into its slot when it is written. As long as it is among the newest, attention sees what is
here in its place: its slot is *veiled*, its bias -inf. When it is no longer, its slot is unveiled.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from scope_cli.cache.layers import Chunk, SlotLayer

INF = float("inf")


class ExactTokens:
    """Of one layer; position p lies at p mod `tokens`.

    keys, values: [lanes, kv_heads, tokens, head_dim], turned as the packed ones are
    slots: [lanes, kv_heads, tokens], where their packed selves lie
    bias: [lanes, kv_heads, 1, tokens], 0 where a token is held, else -inf
    """

    def __init__(self, layer: SlotLayer, tokens: int) -> None:
        cache, geometry = layer.cache, layer.geometry
        size = (cache.shape.lanes, geometry.kv_heads, tokens)
        self.layer, self.tokens = layer, tokens
        self.keys = torch.zeros(*size, geometry.head_dim, dtype=cache.dtype, device=cache.device)
        self.values = torch.zeros_like(self.keys)
        self.slots = torch.zeros(size, dtype=torch.int32, device=cache.device)
        self.bias = torch.full((*size[:2], 1, tokens), -INF, dtype=cache.dtype, device=cache.device)

    def tensors(self) -> dict[str, Tensor]:
        own = {"keys": self.keys, "values": self.values, "slots": self.slots, "bias": self.bias}
        return {f"exact.{name}": tensor for name, tensor in own.items()}

    def reset(self, lane: int) -> None:
        self.bias[lane] = -INF

    def wipe(self, lane: int) -> None:
        self.keys[lane] = self.values[lane] = 0

    def write(self, keys: Tensor, values: Tensor, slot: Tensor) -> None:
        """Each running lane's current token, [lanes, kv_heads, head_dim]; its slot, [lanes, kv_heads].

        The slot is not yet in use: who calls veils it.
        """
        layer, rows, heads = self.layer, self.layer.cache.rows, self.layer.head_numbers
        runs = layer.cache.runs.unsqueeze(1)
        at = (rows, heads, (layer.cache.next_position % self.tokens).unsqueeze(1))
        left = (
            rows,
            heads,
            self.slots[at].long(),
        )  # the slot of the token that is no longer among the newest
        bias, own = layer.bias.squeeze(2), self.bias.squeeze(2)
        bias[left] = torch.where(runs & (own[at] == 0), 0.0, bias[left])
        own[at] = torch.where(runs, 0.0, own[at])
        self.slots[at] = torch.where(runs, slot.to(torch.int32), self.slots[at])
        for into, new in ((self.keys, keys), (self.values, values)):
            into[at] = torch.where(runs.unsqueeze(2), new, into[at])

    def seen(self, chunk: Chunk, prompt: int) -> tuple[Tensor, Tensor]:
        """What each of a chunk's queries sees packed, and what here, where known output is fed.

        The chunk's tokens lie in their slots already. bool, [kv_heads, chunk, slots] and
        [kv_heads, chunk, tokens + chunk]: what is here, then the chunk itself
        """
        device = self.keys.device
        queries = torch.arange(chunk.start, chunk.end, device=device)[:, None]
        held = self.layer.positions[chunk.lane].unsqueeze(1)  # [kv_heads, 1, slots]
        newest = (held >= prompt) & (held > queries - self.tokens)
        packed = (held >= 0) & (held <= queries) & ~newest
        here = self.layer.positions[chunk.lane].gather(1, self.slots[chunk.lane].long()).unsqueeze(1)
        here = (here > queries - self.tokens) & (self.bias[chunk.lane] == 0)  # [kv_heads, chunk, tokens]
        chunk_own = (queries >= queries.T) & (queries - self.tokens < queries.T)
        return packed, torch.cat([here, chunk_own.expand(len(held), -1, -1)], -1)

    def write_chunk(self, chunk: Chunk, keys: Tensor, values: Tensor, slots: Tensor) -> None:
        """A chunk of known output, [kv_heads, chunk, head_dim]; its slots, [kv_heads, chunk]."""
        lane, bias = chunk.lane, self.layer.bias[chunk.lane, :, 0]  # [kv_heads, slots]
        newest = torch.arange(max(chunk.start, chunk.end - self.tokens), chunk.end, device=keys.device)
        at = newest % self.tokens
        gone = self.slots[lane][:, at].long()
        bias.scatter_(1, gone, torch.where(self.bias[lane, :, 0][:, at] == 0, 0.0, bias.gather(1, gone)))
        bias.scatter_(1, slots[:, newest - chunk.start], -INF)
        self.slots[lane, :, at] = slots[:, newest - chunk.start].to(torch.int32)
        self.bias[lane, :, :, at] = 0
        self.keys[lane, :, at] = keys[:, newest - chunk.start]
        self.values[lane, :, at] = values[:, newest - chunk.start]
