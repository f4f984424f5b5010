"""A layer with a sliding window: bounded by the model itself, it overwrites its oldest slot."""

from typing import Any

import torch
from torch import Tensor

from scope_cli.cache.layers import Chunk, SlotLayer


class WindowLayer(SlotLayer):
    """A sliding window: position p lies in slot p mod `most_held`, where it overwrites the one that left."""

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        lane, window, device = chunk.lane, self.geometry.window, keys.device
        before = torch.arange(max(0, chunk.start - window + 1), chunk.start, device=device)
        past = before % self.most_held
        seen_keys = torch.cat([self.keys[lane : lane + 1, :, past], keys], 2)
        seen_values = torch.cat([self.values[lane : lane + 1, :, past], values], 2)
        newest = torch.arange(chunk.start, chunk.end, device=device)
        distance = newest[:, None] - torch.cat([before, newest])[None]
        stays = newest[-self.most_held :]  # what a later token can still see
        slot = stays % self.most_held
        self.keys[lane, :, slot] = keys[0, :, stays - chunk.start]
        self.values[lane, :, slot] = values[0, :, stays - chunk.start]
        self.positions[lane, :, slot] = stays.to(torch.int32)
        self.bias[lane, :, :, slot] = 0
        return seen_keys, seen_values, (distance >= 0) & (distance < window)

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slot = (self.cache.next_position % self.most_held).unsqueeze(1).expand(-1, self.geometry.kv_heads)
        return self._fill(slot, keys, values)
