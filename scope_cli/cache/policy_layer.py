"""A layer with full attention: it holds the prompt and a bounded number of generated tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.layers import Causal, Chunk, SlotLayer
from scope_cli.cache.policy_slots import FREE, INF, PolicySlots, Together
from scope_cli.cache.store import Parts, Put, SlotStore, put
from scope_cli.geometry import LayerGeometry
from scope_cli.policies.view import LaneFacts, SlotView

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


class PolicyLayer(SlotLayer):
    """Full attention: prompt slots first, generated tokens in whatever slots are free.

    vacant: [lanes, kv_heads, evictable], slot numbers; a lane's entries from `held` on are its free slots,
    those before mean nothing. Every KV head has its own list, because heads forget different tokens.
    queries: [lanes, heads, ring, head_dim], the newest queries
    """

    def __init__(
        self, cache: ScopeCache, index: int, geometry: LayerGeometry, slots: PolicySlots | None = None
    ) -> None:
        """slots: this layer's part of what is shared with others; its own where there is none"""
        self.own = slots or PolicySlots.of(cache, [index])
        super().__init__(cache, index, geometry, self.own.positions, self.own.bias)
        self.first_evictable = cache.shape.prompt_slots[index]
        self.vacant, self.queries, self.memos = self.own.vacant, self.own.queries, self.own.memos

    def tensors(self) -> dict[str, Tensor]:
        own = {**super().tensors(), "vacant": self.vacant, "queries": self.queries}
        return own | {f"memos.{name}": memo for name, memo in self.memos.items()}

    @property
    def counts_received(self) -> bool:
        return self.cache.policy.scorer.counts_prompt and not self.cache.policy.protect_prompt

    def wipe(self, lane: int) -> None:
        super().wipe(lane)
        self.queries[lane] = 0

    def reset(self, lane: int) -> None:
        super().reset(lane)
        self.received = None
        for memo in self.memos.values():
            memo[lane] = 0
        self.vacant[lane] = torch.arange(
            self.first_evictable, self.most_held, dtype=torch.int32, device=self.vacant.device
        )

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        held = self.hold(chunk, keys, values, SlotStore.put_rows)
        if held is None:
            return self._feed(chunk, keys, values)
        parts, seen = held
        parts = tuple(part.unsqueeze(0) for part in parts)
        return *self.store.turned_parts(parts, self.cache.space_of(chunk.lane)), seen

    def hold(self, chunk: Chunk, keys: Tensor, values: Tensor, put: Put) -> tuple[Parts, Causal] | None:
        if chunk.known_output:
            return None
        lane, new = chunk.lane, slice(chunk.start, chunk.end)
        put(self.store, keys[0], values[0], self.store.get((lane, slice(None), new)))
        return self.take(chunk), Causal(chunk.tokens, chunk.end)

    def take(self, chunk: Chunk) -> Parts:
        """The prompt's slots up to this chunk's, which are seen from now on: [kv_heads, seen, ...]."""
        assert chunk.end <= (self.first_evictable or self.most_held), "a longer prompt than was planned"
        lane, new = chunk.lane, slice(chunk.start, chunk.end)
        self.positions[lane, :, new] = torch.arange(chunk.start, chunk.end, device=self.positions.device)
        self.bias[lane, :, :, new] = 0
        return self.store.get((lane, slice(None), slice(chunk.end)))

    def place(self, lane: int, parts: Parts, positions: Tensor) -> None:
        """Hold what was kept of a prompt, in the first slots.

        parts: packed, [kv_heads, kept, ...]; positions: [kv_heads, kept], FREE where a head keeps fewer
        """
        kept = slice(positions.shape[1])
        self.store.set((lane, slice(None), kept), parts)
        self.positions[lane, :, kept] = positions
        self.bias[lane, :, 0, kept] = torch.zeros_like(positions, dtype=self.bias.dtype).masked_fill(
            positions == FREE, -INF
        )

    def write(self, keys: Tensor, values: Tensor) -> None:
        nth = self.cache.held.unsqueeze(1)
        slot = self.vacant[self.cache.rows, self.head_numbers, nth].long()
        for memo in self.memos.values():
            at = (self.cache.rows, self.head_numbers, slot)
            put(memo, at, torch.zeros_like(slot, dtype=memo.dtype), self.cache.runs.unsqueeze(1))
        self._fill(slot, keys, values)

    def _feed(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store known output; every KV head has its own slots, so the mask is [1, heads, tokens, slots]."""
        lane = slice(chunk.lane, chunk.lane + 1)
        first = self.cache.count(chunk.lane).held
        slots = self.vacant[lane, :, first : first + chunk.tokens].long()
        at = (chunk.lane, self.head_numbers.T, slots[0])
        new_keys, new_values = self.store.turn(keys[0], values[0])
        self.store.set(at, self.store.pack_turned(new_keys, new_values))
        new = torch.arange(chunk.start, chunk.end, dtype=torch.int32, device=keys.device)
        self.positions[lane].scatter_(2, slots, new.expand_as(slots))
        self.bias[lane].scatter_(
            3, slots.unsqueeze(2), torch.zeros_like(slots.unsqueeze(2), dtype=keys.dtype)
        )
        for memo in self.memos.values():
            memo[lane].scatter_(2, slots, 0)
        group = self.geometry.heads // self.geometry.kv_heads
        keys, values = self.store.turned((lane,), self.cache.space_of(chunk.lane))
        if (exact := self.exact) is not None:
            packed, as_they_are = exact.seen(chunk, self.cache.count(chunk.lane).prompt)
            keys = torch.cat([keys, exact.keys[lane], new_keys.unsqueeze(0)], 2)
            values = torch.cat([values, exact.values[lane], new_values.unsqueeze(0)], 2)
            exact.write_chunk(chunk, new_keys, new_values, slots[0])
            return keys, values, torch.cat([packed, as_they_are], -1).unsqueeze(0).repeat_interleave(group, 1)
        held = self.positions[lane].unsqueeze(2)  # [1, kv_heads, 1, slots]
        seen = (held >= 0) & (held <= new.view(1, 1, -1, 1))
        return keys, values, seen.repeat_interleave(group, 1)

    def remember(self, queries: Tensor, chunk: Chunk | None) -> None:
        if chunk is None:
            at = self.cache.next_position % self.queries.shape[2]
            runs = self.cache.runs.view(-1, 1, 1)
            put(self.queries, (self.cache.rows[:, 0], slice(None), at), queries[:, :, 0], runs)
        else:
            into, ring = self.queries[chunk.lane], self.queries.shape[2]
            first = max(chunk.start, chunk.end - ring)
            around = min(chunk.end, first - first % ring + ring)  # whose place is the ring's first
            for begin, end in ((first, around), (around, chunk.end)):
                part = queries[0, :, begin - chunk.start : end - chunk.start]
                into[:, begin % ring : begin % ring + end - begin] = part

    def view(self, facts: LaneFacts | None = None) -> SlotView:
        """This layer alone, as a scorer sees it; facts: of `ScopeCache.facts`."""
        return Together(self.cache, [self], self.own).view(self.cache.facts() if facts is None else facts)
