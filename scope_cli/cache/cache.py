"""Geometry and shape in, ScopeCache out: fixed slots, freed and filled in place, lanes and phases.

Two kinds of layers: `PolicyLayer` (full attention) and `WindowLayer` (sliding window), made in `buffers.py`.
What they hold is counted in `readings.py`.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from scope_cli.cache.buffers import Buffers
from scope_cli.cache.lanes import TOTALS, LaneCount
from scope_cli.cache.layers import Chunk, LayerAttention
from scope_cli.cache.policy_slots import FREE
from scope_cli.cache.readings import Readings
from scope_cli.cache.shape import CacheShape
from scope_cli.cache.store import by_numbers, put
from scope_cli.events import Audit, Reading
from scope_cli.geometry import Geometry
from scope_cli.policies.policy import Policy
from scope_cli.policies.schedule import Schedule
from scope_cli.policies.view import LaneFacts


class ScopeCache(Buffers):
    """Every layer's slots, the lanes' counters, and the policy that frees slots.

    next_position, held, running, seeds: [lanes], on the device, so that a step asks the host for nothing;
    query_positions: [lanes, ring], FREE where no query has been seen
    """

    def __init__(
        self,
        geometry: Geometry,
        shape: CacheShape,
        policy: Policy,
        *,
        inv_freq: Tensor | None = None,
        attention: Mapping[int, LayerAttention] | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        """attention: by layer; where a layer is not named, its scale is head_dim ** -0.5"""
        self.geometry, self.shape, self.policy = geometry, shape, policy
        self.attention = attention or {}
        self.inv_freq = inv_freq  # [rotated / 2], the policy layers' RoPE, for scorers that undo it
        self.dtype, self.device = dtype, torch.device(device)
        self.tells = policy.scorer.takes_attention and self.device.type == "cpu"
        self.told = False  # a step has told its attention
        self.fitted = 0  # how often the policy layers got other buffers
        self.rows = torch.arange(shape.lanes, device=device).unsqueeze(1)  # [lanes, 1]
        self.layers = []
        self.make_layers()
        self.next_position = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.held = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.running = torch.zeros(shape.lanes, dtype=torch.int64, device=device)  # 1 where a step counts
        self.seeds = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.query_positions = torch.full((shape.lanes, shape.ring), FREE, dtype=torch.int64, device=device)
        self._numbers = [
            by_numbers(one) for one in (self.running, self.next_position, self.held, self.query_positions)
        ]
        self.lanes: list[LaneCount | None] = [None] * shape.lanes
        self.chunk: Chunk | None = None  # the part of a prompt that is being read; None while decoding
        self.evict: Callable[[LaneFacts, int], None] = self.forget  # a step may put a faster one here
        self.watched: Callable[[Callable[[], None]], None] | None = None  # runs `end_step`, and clocks it
        self.fixed_reads = False  # a compiled step reads one of a few lengths
        self.readings = Readings(self)
        self.past_totals = dict.fromkeys(TOTALS, 0)  # of the prompts whose lanes have been given to others

    @property
    def runs(self) -> Tensor:
        """Which lanes write a token in this step, bool [lanes]."""
        return self.running > 0

    @contextmanager
    def at_rest(self) -> Iterator[None]:
        """Steps taken meanwhile leave everything as it is: no lane runs."""
        running = self.running.clone()
        self.running.zero_()
        yield
        self.running.copy_(running)

    @contextmanager
    def alone(self, lane: int) -> Iterator[None]:
        """A step taken meanwhile is this lane's: the others ride along, as if they had ended."""
        running, others = self.running.clone(), [one for one in self.lanes if one and one.active]
        self.running.zero_()
        for count in others:
            count.active = False
        self.running[lane] = 1
        self.count(lane).active = True
        yield
        self.running.copy_(running)
        for count in others:
            count.active = True

    # Reading a prompt

    def start_prompt(self, lane: int, schedule: Schedule, seed: int = 0) -> None:
        """Empty a lane, in place, for a new prompt."""
        self._retire(lane)
        self.lanes[lane] = LaneCount(schedule)
        for layer in self.layers:
            layer.reset(lane)
        self.next_position[lane] = self.held[lane] = self.running[lane] = 0
        self.seeds[lane] = seed
        self.query_positions[lane] = FREE

    def can_copy(self, source: int) -> bool:
        """Whether a lane holds a prompt that was read to its end, runs, and has not been written after."""
        count = self.lanes[source]
        return count is not None and count.active and count.written == 0

    def copy_prompt(self, source: int, lane: int, seed: int = 0) -> None:
        """Start a lane with the prompt that another lane has read, and not yet written after."""
        assert self.can_copy(source), "the source has gone on, or left"
        count = self.count(source)
        self._retire(lane)
        for tensor in self.tensors().values():
            tensor[lane] = tensor[source]
        self.seeds[lane] = seed
        copied = self.readings.held_bytes(count) + self.readings.window_bytes(count.prompt)
        self.lanes[lane] = replace(
            count,
            evictions=0,
            evicted_tokens=0,
            aged_tokens=0,
            moved_bytes=copied,
            reference_moved_bytes=copied,
            host_bytes=0,
        )

    def _retire(self, lane: int) -> None:
        if (count := self.lanes[lane]) is not None:
            self.past_totals = {
                name: total + getattr(count, name) for name, total in self.past_totals.items()
            }
            self.lanes[lane] = None

    def start_chunk(self, lane: int, tokens: int) -> Tensor:
        """The next `tokens` of a lane's prompt are about to be read; their positions, [1, tokens]."""
        start = self.count(lane).prompt
        self.chunk = Chunk(lane, start, tokens)
        return torch.arange(start, start + tokens, device=self.device).unsqueeze(0)

    def resume_prompt(self, lane: int, tokens: int) -> None:
        """The first `tokens` of a lane's prompt count as read: somebody else puts them into its slots."""
        self.count(lane).prompt = tokens

    def start_known(self, lane: int, tokens: int) -> Tensor:
        """Output that is already known is about to be fed; its positions, [1, tokens].

        At most `tokens_to_eviction`.
        """
        assert tokens <= self.tokens_to_eviction(lane), "an eviction is due before the end of the chunk"
        start = self.count(lane).prompt + self.count(lane).written
        self.chunk = Chunk(lane, start, tokens, known_output=True)
        return torch.arange(start, start + tokens, device=self.device).unsqueeze(0)

    def tokens_to_eviction(self, lane: int) -> int:
        """How many tokens can be fed at once: the last of them is followed by an eviction, none before it.

        Where the scorer observes every step, no more than the queries that are remembered.
        """
        count, most = self.count(lane), self.shape.evictable
        if self.policy.scorer.every_step:
            most = min(most, self.shape.ring)
        due = (
            more for more in range(1, most) if count.schedule.excess(count.written + more, count.held + more)
        )
        return next(due, most)

    def end_chunk(self) -> None:
        chunk, ring = self.chunk, self.shape.ring
        assert chunk is not None, "no chunk was started"
        newest = torch.arange(max(chunk.start, chunk.end - ring), chunk.end, device=self.device)
        self.query_positions[chunk.lane, newest % ring] = newest
        self.chunk = None
        count = self.count(chunk.lane)
        if chunk.known_output:
            count.written += chunk.tokens
            count.held += chunk.tokens
            count.most_held = max(count.most_held, count.held)
            self.held[chunk.lane] = count.held
            excess = [0] * len(self.lanes)
            excess[chunk.lane] = count.schedule.excess(count.written, count.held)
            wrote = [lane == chunk.lane for lane in range(len(self.lanes))]
            self.set_read_slots()
            self.told = False
            self._observe_and_evict(excess, wrote, chunk.tokens)
            self.next_position[chunk.lane] = chunk.end
        else:
            count.prompt = chunk.end
            self._hold_prompt(count)

    def keep_prompt(self, lane: int, kept: tuple[int, ...]) -> None:
        """So many prompt tokens are held, by layer, on average over its KV heads."""
        count = self.count(lane)
        count.kept = kept
        self._hold_prompt(count)

    def _hold_prompt(self, count: LaneCount) -> None:
        """An unprotected prompt is part of what the schedule limits."""
        if not self.policy.protect_prompt:
            kept = None if count.kept is None else [count.kept[layer.index] for layer in self.policy_layers]
            count.held = count.most_held = kept[0] if kept else count.prompt

    def start_decode(self, lane: int) -> None:
        """The lane's prompt is read; what comes from now on is output."""
        count = self.count(lane)
        self.held[lane] = count.held
        self.next_position[lane] = count.prompt
        self.running[lane] = 1
        count.active = True
        self.set_read_slots()
        for layer in self.policy_layers:
            if layer.received is not None:
                view = layer.view()
                by_slot = view.positions.new_zeros(view.positions.shape, dtype=torch.float32)
                where = view.positions[lane].long()  # [kv_heads, slots]
                got = layer.received.float().gather(1, where.clamp(min=0))
                by_slot[lane] = got.masked_fill(where < 0, 0)
                self.policy.scorer.observe_prompt(view, by_slot)
                layer.received = None

    # Decoding

    @property
    def asks_attention(self) -> bool:
        """Whether the scorer will look at the attention of the step that comes now, and can be told it."""
        if not self.tells or self.policy.scorer.every_step:
            return self.tells
        active = [count for count in self.lanes if count is not None and count.active]
        return any(count.schedule.excess(count.written + 1, count.held + 1) for count in active)

    def end_step(self) -> None:
        """Count the token that each active lane wrote, and evict where a lane holds more than it may."""
        if self.watched is None:
            self._end_step()
        else:
            self.watched(self._end_step)

    def _end_step(self) -> None:
        self._advance()
        excess = [0] * len(self.lanes)
        for lane, count in enumerate(self.lanes):
            if count is not None and count.active:
                count.written += 1
                count.held += 1
                count.most_held = max(count.most_held, count.held)
                excess[lane] = count.schedule.excess(count.written, count.held)
        wrote = [count is not None and count.active for count in self.lanes]
        self._observe_and_evict(excess, wrote)
        self.told = False
        self.set_read_slots()

    def _advance(self) -> None:
        """Each lane that runs has a token more, and remembers its query."""
        ring = self.shape.ring
        if self.device.type != "cpu":
            now = self.next_position
            put(self.query_positions, (self.rows[:, 0], now % ring), now, self.runs)
            self.held += self.running
            self.next_position += self.running
            return
        running, next_position, held, query_positions = self._numbers
        for lane, runs in enumerate(running):
            if runs:
                now = next_position[lane]
                query_positions[lane, now % ring] = now
                held[lane] += 1
                next_position[lane] = now + 1

    def finish(self, lane: int) -> None:
        """A finished lane still rides along in the steps, and writes nothing."""
        self.chunk = None  # a prompt that could not be read to its end
        self.running[lane] = 0
        if (count := self.lanes[lane]) is not None:
            count.active = False

    def abandon(self, lane: int) -> None:
        """Finish a lane that failed: what it holds may be no numbers, which the next prompt must not see."""
        self.finish(lane)
        for layer in self.layers:
            layer.wipe(lane)

    def facts(self, excess: Sequence[int] | None = None, wrote: Sequence[bool] | None = None) -> LaneFacts:
        """What a view tells of the lanes.

        One copy to the device for all layers, which nothing waits for.
        """
        leaving = excess or [0] * len(self.lanes)
        current = wrote or [count is not None and count.active for count in self.lanes]
        rows = [
            (count.prompt, count.written, count.schedule.recent, gone, new) if count else (0, 0, 0, 0, 0)
            for count, gone, new in zip(self.lanes, leaving, current, strict=True)
        ]
        facts = torch.tensor(rows)
        if self.device.type == "cuda":
            facts = facts.pin_memory().to(self.device, non_blocking=True)
        return LaneFacts.of(facts.to(self.device).T.reshape(5, -1, 1, 1))

    def _observe_and_evict(self, excess: list[int], wrote: list[bool], tokens: int = 1) -> None:
        """One look at the slots of each layer, where the scorer or an eviction needs one.

        tokens: how many were written at once; who observes every step is shown each of them
        """
        scorer, most = self.policy.scorer, max(excess)
        if not most and not scorer.every_step:
            return
        if scorer.every_step and tokens > 1:
            past = self.facts(None, wrote)
            for layers in self.together:
                for ago in range(tokens - 1, 0, -1):
                    scorer.observe(layers.view(past, ago))
        self.evict(self.facts(excess, wrote), most)
        for count, leaving in zip(self.lanes, excess, strict=True):
            if count is not None and leaving:
                count.held -= leaving
                if count.held <= count.schedule.recent + count.schedule.floor:
                    count.aged_tokens += leaving
                count.evictions += 1
                count.evicted_tokens += leaving
                count.reference_moved_bytes += self.readings.held_bytes(count)

    def forget(self, facts: LaneFacts, most: int) -> None:
        """Show the scorer every layer, and free what leaves, `most` tokens of a lane at most.

        On the device alone, from `facts` and the buffers: it can be captured.
        """
        for layers in self.together:
            layers.forget(facts, most)
        self.held -= facts.leaving.flatten()

    @contextmanager
    def with_schedule(self, lane: int, schedule: Schedule) -> Iterator[None]:
        """Tokens fed meanwhile are evicted as `schedule` says."""
        count = self.count(lane)
        own, count.schedule = count.schedule, schedule
        try:
            yield
        finally:
            count.schedule = own

    # What is counted

    def count_transfer(self, lane: int, size: int) -> None:
        """So many bytes went between host and device for a lane."""
        self.count(lane).host_bytes += size

    def count(self, lane: int) -> LaneCount:
        count = self.lanes[lane]
        assert count is not None, f"lane {lane} has no prompt"
        return count

    def reading(self, lane: int | None = None) -> Reading:
        """What the lanes hold and have done, or one of them; nothing waits for the device."""
        return self.readings.of(lane)

    def audit(self, lane: int | None = None, prompt: int | None = None, written: int | None = None) -> Audit:
        """Count the slots themselves and compare: see `Readings.audit`."""
        return self.readings.audit(lane, prompt, written)
