"""A layer with a sliding window: bounded by the model itself, it overwrites its oldest slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.layers import Causal, Chunk, SlotLayer
from scope_cli.cache.policy_slots import nothing_held
from scope_cli.cache.store import Parts, Put, SlotStore
from scope_cli.geometry import LayerGeometry

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


class WindowLayer(SlotLayer):
    """A sliding window: position p lies in slot p mod `most_held`, where it overwrites the one that left."""

    def __init__(self, cache: ScopeCache, index: int, geometry: LayerGeometry) -> None:
        super().__init__(cache, index, geometry, *nothing_held(cache, cache.shape.lanes, index))

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        parts, seen = self._store(chunk, keys, values, SlotStore.put_rows)
        seen_keys, seen_values = self.store.turned_parts([part.unsqueeze(0) for part in parts])
        if (exact := self.exact) is None or not chunk.known_output:
            return seen_keys, seen_values, seen
        lane, device = chunk.lane, keys.device
        new_keys, new_values = self.store.turn(keys, values)
        newest = torch.arange(chunk.start, chunk.end, device=device)
        visible = seen.mask(device)
        distance = newest[:, None] - torch.arange(chunk.end - seen.seen, chunk.end, device=device)[None]
        prompt, most = self.cache.count(lane).prompt, exact.tokens
        visible &= (distance >= most) | (newest[:, None] - distance < prompt)
        here = torch.arange(max(prompt, chunk.start - most + 1), chunk.start, device=device)
        seen_keys = torch.cat([seen_keys, exact.keys[lane : lane + 1, :, here % most], new_keys], 2)
        seen_values = torch.cat([seen_values, exact.values[lane : lane + 1, :, here % most], new_values], 2)
        near = newest[:, None] - torch.cat([here, newest])[None]
        exact.write_chunk(
            chunk, new_keys[0], new_values[0], (newest % self.most_held).expand(keys.shape[1], -1)
        )
        return seen_keys, seen_values, torch.cat([visible, (near >= 0) & (near < most)], 1)

    def hold(self, chunk: Chunk, keys: Tensor, values: Tensor, put: Put) -> tuple[Parts, Causal] | None:
        return None if self.exact and chunk.known_output else self._store(chunk, keys, values, put)

    def _store(self, chunk: Chunk, keys: Tensor, values: Tensor, put: Put) -> tuple[Parts, Causal]:
        """What the chunk's tokens see is what stood in the slots, then the chunk, which overwrites them."""
        lane, window, device = chunk.lane, self.geometry.window, keys.device
        before = torch.arange(max(0, chunk.start - window + 1), chunk.start, device=device)
        old = self.store.get((lane, slice(None), before % self.most_held))
        seen = Causal(chunk.tokens, len(before) + chunk.tokens, window)
        parts = tuple(part.new_empty(len(part), seen.seen, *part.shape[2:]) for part in old)
        for part, there in zip(parts, old, strict=True):
            part[:, : len(before)] = there
        put(self.store, keys[0], values[0], tuple(part[:, len(before) :] for part in parts))
        stays = torch.arange(chunk.start, chunk.end, device=device)[-self.most_held :]  # still seen
        slot = stays % self.most_held
        self.store.set((lane, slice(None), slot), tuple(part[:, -len(stays) :] for part in parts))
        self.positions[lane, :, slot] = stays.to(torch.int32)
        self.bias[lane, :, :, slot] = 0
        return parts, seen

    def write(self, keys: Tensor, values: Tensor) -> None:
        slot = (self.cache.next_position % self.most_held).unsqueeze(1).expand(-1, self.geometry.kv_heads)
        self._fill(slot, keys, values)
