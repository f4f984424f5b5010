"""A layer with a sliding window: bounded by the model itself, it overwrites its oldest slot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.layers import Causal, Chunk, SlotLayer
from scope_cli.cache.policy_slots import nothing_held
from scope_cli.geometry import LayerGeometry

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


class WindowLayer(SlotLayer):
    """A sliding window: position p lies in slot p mod `most_held`, where it overwrites the one that left."""

    def __init__(self, cache: ScopeCache, index: int, geometry: LayerGeometry) -> None:
        super().__init__(cache, index, geometry, *nothing_held(cache, cache.shape.lanes, index))

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        lane, window, device = chunk.lane, self.geometry.window, keys.device
        before = torch.arange(max(0, chunk.start - window + 1), chunk.start, device=device)
        past = before % self.most_held
        new_keys, new_values = self.store.turn(keys, values)
        parts = self.store.pack_turned(new_keys, new_values)
        old = self.store.get((slice(lane, lane + 1), slice(None), past))
        seen_keys, seen_values = self.store.turned_parts(
            [torch.cat(pair, 2) for pair in zip(old, parts, strict=True)]
        )
        newest = torch.arange(chunk.start, chunk.end, device=device)
        stays = newest[-self.most_held :]  # what a later token can still see
        slot = stays % self.most_held
        kept = tuple(part[0, :, stays - chunk.start] for part in parts)
        self.store.set((lane, slice(None), slot), kept)
        self.positions[lane, :, slot] = stays.to(torch.int32)
        self.bias[lane, :, :, slot] = 0
        seen = Causal(chunk.tokens, seen_keys.shape[2], window)
        if (exact := self.exact) is None or not chunk.known_output:
            return seen_keys, seen_values, seen
        visible = seen.mask(device)
        distance = newest[:, None] - torch.cat([before, newest])[None]
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

    def write(self, keys: Tensor, values: Tensor) -> None:
        slot = (self.cache.next_position % self.most_held).unsqueeze(1).expand(-1, self.geometry.kv_heads)
        self._fill(slot, keys, values)
