"""A layer with full attention: it holds the prompt and a bounded number of generated tokens."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.layers import FREE, INF, Chunk, SlotLayer, causal_mask
from scope_cli.cache.store import Parts, put
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

    def __init__(self, cache: ScopeCache, index: int, geometry: LayerGeometry) -> None:
        super().__init__(cache, index, geometry)
        shape = cache.shape
        self.first_evictable = shape.prompt_slots[index]
        every = torch.arange(self.first_evictable, self.most_held, dtype=torch.int32, device=cache.device)
        self.vacant = every.repeat(shape.lanes, geometry.kv_heads, 1)
        self.queries = torch.zeros(
            shape.lanes, geometry.heads, shape.ring, geometry.head_dim, dtype=cache.dtype, device=cache.device
        )
        self.memos = {
            name: torch.zeros(
                shape.lanes, geometry.kv_heads, self.slots, dtype=torch.float32, device=cache.device
            )
            for name in cache.policy.scorer.memos
        }

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
        if chunk.known_output:
            return self._feed(chunk, keys, values)
        assert chunk.end <= (self.first_evictable or self.most_held), "a longer prompt than was planned"
        lane, new = chunk.lane, slice(chunk.start, chunk.end)
        self.store.set((lane, slice(None), new), self.store.pack(keys[0], values[0]))
        self.positions[lane, :, new] = torch.arange(chunk.start, chunk.end, device=keys.device)
        self.bias[lane, :, :, new] = 0
        seen = (slice(lane, lane + 1), slice(None), slice(chunk.end))
        return *self.store.turned(seen, self.cache.space_of(lane)), causal_mask(chunk, keys.device)

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
            newest = torch.arange(
                max(chunk.start, chunk.end - self.queries.shape[2]), chunk.end, device=queries.device
            )
            self.queries[chunk.lane, :, newest % self.queries.shape[2]] = queries[0, :, newest - chunk.start]

    def evict(self, scores: Tensor, is_candidate: Tensor, leaving: Tensor, most: int) -> None:
        """Free each lane's `leaving` lowest scored candidates, the older first among equals.

        scores, is_candidate: [lanes, kv_heads, slots] or a prefix of them; leaving: [lanes, 1, 1], at most
        `most`
        """
        first = self.first_evictable
        scores = scores.masked_fill(~is_candidate, INF)[:, :, first:]
        positions = self.positions[:, :, first : first + scores.shape[2]]
        by_age = positions.argsort(-1)
        by_score = scores.gather(2, by_age).sort(dim=-1, stable=True).indices[:, :, :most]
        victims = by_age.gather(2, by_score)  # [lanes, kv_heads, most], counted from the first evictable slot

        rank = torch.arange(most, device=victims.device)
        goes = (rank < leaving).expand_as(victims)
        # The lane's list ends, among its taken entries, with the slots that are free from now on. A lane that
        # evicts fewer than `most` writes back what stood there; the indices are distinct, as scatter_ wants
        # them.
        entry = (self.cache.held.view(-1, 1, 1) - leaving + rank) % self.vacant.shape[2]
        entry = entry.expand_as(victims)
        freed = torch.where(goes, (victims + first).to(torch.int32), self.vacant.gather(2, entry))
        self.vacant.scatter_(2, entry, freed)

        slots = victims + first
        self.positions.scatter_(2, slots, self.positions.gather(2, slots).masked_fill(goes, FREE))
        at = slots.unsqueeze(2)
        self.bias.scatter_(3, at, self.bias.gather(3, at).masked_fill(goes.unsqueeze(2), -INF))

    def view(self, facts: LaneFacts | None = None, ago: int = 0) -> SlotView:
        """The prefix that is in use, as a scorer sees it.

        facts: of `ScopeCache.facts`; ago: how it was so many tokens ago, if nothing was evicted since
        Of several lanes all slots are seen: a prefix would depend on what the other lanes hold, and sums over
        another length round differently.
        """
        cache = self.cache
        used = self.read_slots if cache.shape.lanes == 1 else self.slots
        seen = (slice(None), slice(None), slice(used))
        protected = None if cache.policy.protect_prompt else cache.policy.sinks
        return SlotView(
            layer_number=lambda: self.index,
            scale=self.scale,
            keys=lambda: self.store.plain_keys(seen),
            values=lambda: self.store.plain_values(seen),
            positions=self.positions[:, :, :used],
            queries=self.queries,
            query_positions=cache.query_positions,
            seeds=cache.seeds,
            inv_freq=cache.inv_freq,
            memos={name: memo[:, :, :used] for name, memo in self.memos.items()},
            output_weight=self.output_weight,
            facts=cache.facts() if facts is None else facts,
            protected=protected,
            most_candidates=min(used, cache.shape.evictable),
            ago=ago,
        )

    def forget(self, facts: LaneFacts, most: int) -> None:
        """Show the scorer the slots, and free what leaves, `most` tokens of a lane at most."""
        policy, view = self.cache.policy, self.view(facts)
        policy.scorer.observe(view)
        if most:
            self.evict(policy.scores(view), view.is_candidate, facts.leaving, most)
