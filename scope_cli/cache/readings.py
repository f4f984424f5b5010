"""What a cache holds and has done: by its counters, and by the slots themselves for the audit."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from statistics import mean
from typing import TYPE_CHECKING

from scope_cli.cache.lanes import TOTALS, LaneCount
from scope_cli.cache.layers import SlotLayer
from scope_cli.cache.policy_slots import INF
from scope_cli.cache.window_layer import WindowLayer
from scope_cli.events import Audit, Reading

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


class Readings:
    """Arithmetic on the shapes and counters of a cache, as long as its buffers have these sizes."""

    def __init__(self, cache: ScopeCache) -> None:
        self.cache = cache
        self._left: dict[int, tuple[LaneCount, tuple[object, ...], int]] = {}  # by lane: see `_live_prompt`

    def held_bytes(self, count: LaneCount) -> int:
        """Keys and values of everything that a lane holds in the policy layers."""
        held = count.held * self._token_bytes
        return held + self._prompt_bytes(count) if self.cache.policy.protect_prompt else held

    def _prompt_bytes(self, count: LaneCount) -> int:
        """Keys and values of what was kept of a lane's prompt."""
        if count.kept is None:
            return count.prompt * self._token_bytes
        return sum(count.kept[layer.index] * self._slot_bytes[layer] for layer in self.cache.policy_layers)

    def _mean_kept(self, kept: tuple[int, ...]) -> int:
        by_layer = [kept[layer.index] for layer in self.cache.policy_layers]
        return round(mean(by_layer)) if by_layer else 0

    @cached_property
    def _slot_bytes(self) -> dict[SlotLayer, int]:
        """Of one slot in each layer."""
        itemsize = self.cache.dtype.itemsize
        return {layer: self.cache.shape.slot_bytes(layer.geometry, itemsize) for layer in self.cache.layers}

    @cached_property
    def _lane_sizes(self) -> tuple[int, int, int]:
        """Of one lane: bytes of all buffers, bytes of keys and values, slots of a policy layer on average."""
        allocated = (
            self.cache.shape.cache_bytes(self.cache.geometry, self.cache.dtype.itemsize)
            // self.cache.shape.lanes
        )
        slot_bytes = sum(layer.slots * self._slot_bytes[layer] for layer in self.cache.layers)
        slots = [layer.slots for layer in self.cache.policy_layers]
        return allocated, slot_bytes, round(mean(slots)) if slots else 0

    @cached_property
    def _read_bytes(self) -> list[int]:
        """Keys, values and bias of one slot of one lane, in all layers of a size, by `_alike`."""
        return [
            sum(
                self._slot_bytes[layer] + layer.geometry.kv_heads * self.cache.dtype.itemsize
                for layer in layers
            )
            for layers in self.cache.alike
        ]

    def of(self, lane: int | None = None) -> Reading:
        """What the lanes hold and have done, or one of them: arithmetic on shapes and counters.

        Nothing waits for the device. An unprotected prompt is the exception: how much of it is left takes a
        look at the positions, after each eviction.
        """
        chosen = range(len(self.cache.lanes)) if lane is None else (lane,)
        counts = [(index, count) for index in chosen if (count := self.cache.lanes[index]) is not None]
        held_bytes = full_bytes = padding_bytes = kept_prompt = kept_generated = 0
        for_prompts = self._prompt_slot_bytes  # of one lane
        for index, count in counts:
            seen = count.prompt + count.written
            held_bytes += self.held_bytes(count) + self.window_bytes(seen)
            full_bytes += self._full_bytes(seen)
            if self.cache.policy.protect_prompt:
                kept_prompt += count.prompt if count.kept is None else self._mean_kept(count.kept)
                kept_generated += count.held
                padding_bytes += for_prompts - self._prompt_bytes(count)
            else:
                prompt = self._live_prompt(index)
                kept_prompt += prompt
                kept_generated += count.held - prompt
        allocated, slot_bytes, slots = self._lane_sizes
        totals = dict.fromkeys(TOTALS, 0) if lane is not None else dict(self.cache.past_totals)
        for _, count in counts:
            for name in TOTALS:
                totals[name] += getattr(count, name)
        return Reading(
            kept_prompt=kept_prompt,
            kept_generated=kept_generated,
            slots=len(chosen) * slots,
            held_bytes=held_bytes,
            overhead_bytes=len(chosen) * (allocated - slot_bytes),
            allocated_bytes=len(chosen) * allocated,
            padding_bytes=padding_bytes,
            full_bytes=full_bytes,
            read_bytes=len(chosen)
            * sum(
                layers[0].read_slots * bytes_of_a_slot
                for layers, bytes_of_a_slot in zip(self.cache.alike, self._read_bytes, strict=True)
            ),
            **totals,
        )

    def audit(self, lane: int | None = None, prompt: int | None = None, written: int | None = None) -> Audit:
        """Count the slots themselves, of one lane or of all, and compare with what the readings say.

        prompt, written: tokens that were fed to the lane, as who fed them counted; the cache's own numbers
            are compared with them.
        """
        problems = []
        reading = self.of(lane)
        chosen = slice(None) if lane is None else slice(lane, lane + 1)
        buffers = sum(tensor[chosen].nbytes for tensor in self.cache.tensors().values())
        if self.cache.space is not None:
            buffers += self.cache.space[chosen].nbytes
        if buffers != reading.allocated_bytes:
            problems.append(f"buffers take {buffers} bytes, the reading says {reading.allocated_bytes}")
        shape, itemsize = self.cache.shape, self.cache.dtype.itemsize
        live = sum(
            int((layer.positions[chosen] >= 0).sum())
            * shape.form.token_bytes(layer.geometry.head_dim, itemsize)
            for layer in self.cache.layers
        )
        if live != reading.held_bytes:
            problems.append(f"live slots take {live} bytes, the reading says {reading.held_bytes}")
        counts = [
            (index, count) for index, count in enumerate(self.cache.lanes) if count and lane in (None, index)
        ]
        for index, count in counts:
            told = (count.prompt if prompt is None else prompt, count.written if written is None else written)
            problems += [f"lane {index}, {problem}" for problem in self._unaccounted(index, count, *told)]
        accounted = not problems
        over = [index for index, count in counts if self._over_budget(index, count)]
        problems += [f"lane {index} held more than its budget, or lost recent tokens" for index in over]
        limited = any(
            count.written and count.most_held > (count.schedule.limit(count.written) or INF)
            for _, count in counts
        )
        if limited and not reading.evictions:
            problems.append("the budget was exceeded and nothing was evicted")
        active = True if reading.evictions else (False if limited else None)
        by_age = sum(count.aged_tokens for _, count in counts)
        by_score = sum(count.evicted_tokens for _, count in counts) - by_age
        return Audit(active, not over, accounted, tuple(problems), by_score, by_age)

    def _unaccounted(self, lane: int, count: LaneCount, prompt: int, written: int) -> Iterator[str]:
        """Tokens that were fed to a lane and are neither held nor evicted, by layer and KV head.

        Of a prompt, what was kept counts. Where heads keep different numbers (`adakv`) their sum is known.
        """
        if (prompt, written) != (count.prompt, count.written):
            yield f"{prompt} + {written} tokens were fed, {count.prompt} + {count.written} counted"
        for layer in self.cache.layers:
            positions = layer.positions[lane]  # [kv_heads, slots]
            if isinstance(layer, WindowLayer):
                last = min(prompt + written, layer.most_held)
                newest = positions >= prompt + written - last
                if newest.sum(-1).ne(last).any() or (positions >= 0).sum(-1).ne(last).any():
                    yield f"layer {layer.index}: the window does not hold the newest {last} tokens"
                continue
            kept = prompt if count.kept is None else count.kept[layer.index]
            old, new = ((positions >= 0) & (positions < prompt)).sum(-1), (positions >= prompt).sum(-1)
            if not self.cache.policy.protect_prompt:
                found, fed = old + new + count.evicted_tokens, kept + written
            else:
                found, fed = new + count.evicted_tokens, written
                if int(old.sum()) != kept * len(old):
                    yield f"layer {layer.index}: {old.tolist()} prompt tokens by head, {kept} were kept"
            if found.ne(fed).any():
                yield f"layer {layer.index}: {found.tolist()} tokens held or evicted by head, {fed} written"

    def _over_budget(self, lane: int, count: LaneCount) -> bool:
        """More than the limit and the current token held at any time, or a recent token gone."""
        schedule, seen = count.schedule, count.prompt + count.written
        limit = schedule.limit(count.written)
        if limit is None or not self.cache.policy_layers:
            return False
        newest = min(schedule.recent, count.written)
        recent_gone = any(
            bool(((layer.positions[lane] >= seen - newest).sum(-1) != newest).any())
            for layer in self.cache.policy_layers
        )
        return count.most_held > max(limit + 1, schedule.base + 1) or recent_gone

    def _live_prompt(self, lane: int) -> int:
        """Prompt tokens left of an unprotected prompt, averaged over heads and layers.

        Looked at once between two evictions: on a GPU the host waits for that, and for the step on its way.
        """
        count = self.cache.count(lane)
        now = count.prompt, count.kept, count.evictions
        known = self._left.get(lane)
        if known is None or known[0] is not count or known[1] != now:
            positions = [layer.positions[lane] for layer in self.cache.policy_layers]
            live = sum(((where >= 0) & (where < count.prompt)).sum() for where in positions)
            left = round(float(live) / max(1, sum(where.shape[0] for where in positions)))
            known = self._left[lane] = count, now, left
        return known[2]

    def window_bytes(self, seen: int) -> int:
        return sum(min(seen, most) * slot_bytes for most, slot_bytes, _ in self._windows)

    def _full_bytes(self, seen: int) -> int:
        """What a plain cache that evicts nothing holds after so many tokens, its windows bounded."""
        in_windows = sum(min(seen, most) * plain_bytes for most, _, plain_bytes in self._windows)
        return seen * self._plain_bytes + in_windows

    @cached_property
    def _windows(self) -> list[tuple[int, int, int]]:
        """Of each window layer: the most tokens it holds, bytes of a slot, and as the model computed them."""
        return [
            (layer.most_held, self._slot_bytes[layer], layer.geometry.slot_bytes(self.cache.dtype.itemsize))
            for layer in self.cache.layers
            if isinstance(layer, WindowLayer)
        ]

    @cached_property
    def _plain_bytes(self) -> int:
        """Key and value of one token in all policy layers, as the model computed them."""
        itemsize = self.cache.dtype.itemsize
        return sum(layer.geometry.slot_bytes(itemsize) for layer in self.cache.policy_layers)

    @cached_property
    def _token_bytes(self) -> int:
        """Of one token in all policy layers."""
        return sum(self._slot_bytes[layer] for layer in self.cache.policy_layers)

    @cached_property
    def _prompt_slot_bytes(self) -> int:
        """Of the slots that are kept for a lane's prompt."""
        return sum(layer.first_evictable * self._slot_bytes[layer] for layer in self.cache.policy_layers)
