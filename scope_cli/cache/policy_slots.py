"""What lies beside the keys and values of policy layers of one size, together: one eviction for all of them.

A *row* is a lane of one of the layers: the lanes of the first, then those of the next. A layer's own part is
a view of its rows.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from scope_cli.policies.view import LaneFacts, SlotView

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache
    from scope_cli.cache.policy_layer import PolicyLayer

FREE = -1  # the position of a slot that holds nothing
INF = float("inf")


@dataclass(frozen=True)
class PolicySlots:
    """positions: [rows, kv_heads, slots]; bias: [rows, kv_heads, 1, slots], as in SlotLayer

    vacant: [rows, kv_heads, evictable]; queries: [rows, heads, ring, head_dim]; memos: as positions, each.
    See PolicyLayer. told: as positions, float32, attention of the newest step, where it was asked for
    """

    positions: Tensor
    bias: Tensor
    vacant: Tensor
    queries: Tensor
    memos: dict[str, Tensor]
    told: Tensor | None

    @classmethod
    def of(cls, cache: ScopeCache, indices: Sequence[int]) -> PolicySlots:
        """Nothing held, for layers of one size."""
        shape, geometry = cache.shape, cache.geometry.layers[indices[0]]
        rows, device = len(indices) * shape.lanes, cache.device
        positions, bias = nothing_held(cache, rows, indices[0])
        ring = (rows, geometry.heads, shape.ring, geometry.head_dim)
        vacant = (rows, geometry.kv_heads, shape.evictable)
        return cls(
            positions,
            bias,
            vacant=torch.zeros(vacant, dtype=torch.int32, device=device),
            queries=torch.zeros(ring, dtype=cache.dtype, device=device),
            memos={
                name: torch.zeros(positions.shape, dtype=torch.float32, device=device)
                for name in cache.policy.scorer.memos
            },
            told=torch.zeros(positions.shape) if cache.tells else None,
        )

    def part(self, rows: slice) -> PolicySlots:
        return PolicySlots(
            self.positions[rows],
            self.bias[rows],
            self.vacant[rows],
            self.queries[rows],
            {name: memo[rows] for name, memo in self.memos.items()},
            None if self.told is None else self.told[rows],
        )


def nothing_held(cache: ScopeCache, rows: int, index: int) -> tuple[Tensor, Tensor]:
    """Positions and bias of so many rows of a layer."""
    geometry = cache.geometry.layers[index]
    slots = cache.shape.layer_slots(index, geometry)
    positions = torch.full((rows, geometry.kv_heads, slots), FREE, dtype=torch.int32, device=cache.device)
    size = (rows, geometry.kv_heads, 1, slots)
    return positions, torch.full(size, -INF, dtype=cache.dtype, device=cache.device)


class Together:
    """Layers of one size whose slots are looked at, and freed, at once."""

    def __init__(self, cache: ScopeCache, layers: Sequence[PolicyLayer], slots: PolicySlots) -> None:
        self.cache, self.layers, self.slots = cache, layers, slots
        numbers = torch.tensor([layer.index for layer in layers], device=cache.device)
        self.numbers = numbers.repeat_interleave(cache.shape.lanes).view(-1, 1, 1)

    def _of_each(self, by_lane: Tensor) -> Tensor:
        """[lanes, ...] to [rows, ...]"""
        many = len(self.layers)
        return by_lane if many == 1 else by_lane.repeat(many, *[1] * (by_lane.dim() - 1))

    def view(self, facts: LaneFacts, ago: int = 0) -> SlotView:
        """The prefix that is in use, as a scorer sees it: rows in place of lanes.

        facts: of `ScopeCache.facts`; ago: how it was so many tokens ago, if nothing was evicted since
        Of several lanes all slots are seen: a prefix would depend on what the other lanes hold, and sums over
        another length round differently.
        """
        cache, slots, first = self.cache, self.slots, self.layers[0]
        used = first.read_slots if cache.shape.lanes == 1 else first.slots
        seen = (slice(None), slice(None), slice(used))
        protected = None if cache.policy.protect_prompt else cache.policy.sinks

        def together(part_of: Callable[[PolicyLayer], Tensor]) -> Tensor:
            parts = [part_of(layer) for layer in self.layers]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        def products(queries: Tensor) -> Tensor:
            by_layer = queries.split(cache.shape.lanes)
            parts = [
                layer.store.products(own, seen) for layer, own in zip(self.layers, by_layer, strict=True)
            ]
            return parts[0] if len(parts) == 1 else torch.cat(parts)

        return SlotView(
            layers=self.numbers,
            layer_number=first.index if len(self.layers) == 1 else None,
            scale=first.scale,
            keys=lambda: together(lambda layer: layer.store.plain_keys(seen)),
            values=lambda: together(lambda layer: layer.store.plain_values(seen)),
            products=products,
            positions=slots.positions[:, :, :used],
            queries=slots.queries,
            query_positions=self._of_each(cache.query_positions),
            seeds=self._of_each(cache.seeds),
            inv_freq=cache.inv_freq,
            memos={name: memo[:, :, :used] for name, memo in slots.memos.items()},
            output_weight=first.output_weight,
            facts=LaneFacts(*map(self._of_each, facts)),
            protected=protected,
            most_candidates=min(used, cache.shape.evictable),
            ago=ago,
            told=slots.told[:, :, :used] if cache.told and slots.told is not None and not ago else None,
        )

    def forget(self, facts: LaneFacts, most: int) -> None:
        """Show the scorer the slots, and free what leaves, `most` tokens of a row at most."""
        policy, view = self.cache.policy, self.view(facts)
        policy.scorer.observe(view)
        if most:
            self._evict(policy.scores(view), view.is_candidate, self._of_each(facts.leaving), most)

    def _evict(self, scores: Tensor, is_candidate: Tensor, leaving: Tensor, most: int) -> None:
        """Free each row's `leaving` lowest scored candidates, the older first among equals.

        scores, is_candidate: [rows, kv_heads, slots] or a prefix of them; leaving: [rows, 1, 1], at most
        `most`
        """
        own, first = self.slots, self.layers[0].first_evictable
        scores = scores.masked_fill(~is_candidate, INF)[:, :, first:]
        victims = lowest(scores, own.positions[:, :, first : first + scores.shape[2]], most) + first

        rank = torch.arange(most, device=victims.device)
        goes = (rank < leaving).expand_as(victims)
        # The row's list ends, among its taken entries, with the slots that are free from now on. A row that
        # evicts fewer than `most` writes back what stood there; the indices are distinct, as scatter_ wants
        # them.
        held = self._of_each(self.cache.held).view(-1, 1, 1)
        entry = ((held - leaving + rank) % own.vacant.shape[2]).expand_as(victims)
        freed = torch.where(goes, victims.to(torch.int32), own.vacant.gather(2, entry))
        own.vacant.scatter_(2, entry, freed)
        for tensor, empty in ((own.positions, FREE), (own.bias.squeeze(2), -INF)):
            tensor.scatter_(2, victims, tensor.gather(2, victims).masked_fill(goes, empty))


def lowest(scores: Tensor, positions: Tensor, most: int) -> Tensor:
    """Where each head's `most` lowest scores are, lowest first, the older first among equals.

    scores: [rows, kv_heads, slots]; positions: int32, the same; returns [rows, kv_heads, most]
    """
    if scores.dtype != torch.float32 or scores.device.type == "mps":  # which has no topk of int64
        by_age = positions.argsort(-1)
        return by_age.gather(2, scores.gather(2, by_age).sort(dim=-1, stable=True).indices[:, :, :most])
    bits = (scores + 0.0).view(torch.int32)  # 0.0 in place of -0.0
    ordered = bits ^ ((bits >> 31) & 0x7FFFFFFF)  # as integers, in the order of the numbers
    return ordered.long().bitwise_left_shift_(32).add_(positions).topk(most, largest=False).indices
