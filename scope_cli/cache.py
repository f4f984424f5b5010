"""Geometry and shape in, ScopeCache out: fixed slots, freed and filled in place, and every byte counted.

Nothing is moved, concatenated or reallocated after construction. Attention does not care about the order of
slots, because keys carry their rotation; a token's age is its position, never its slot.

Two kinds of layers: `PolicyLayer` (full attention) holds the prompt and a bounded number of generated tokens;
`WindowLayer` (sliding window) is bounded by the model itself and overwrites its oldest slot.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from statistics import mean
from typing import Any

import torch
from torch import Tensor

from scope_cli.events import Audit, Reading
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.plan import STEP, CacheShape, whole_steps
from scope_cli.schedule import Schedule
from scope_cli.scorers.base import Policy, SlotView

FREE = -1  # the position of a slot that holds nothing
BLOCK = 512  # keys that SDPA looks at together on a CPU
ALL = 2**40  # slots: more than there are
INF = float("inf")


@dataclass(frozen=True)
class LayerAttention:
    """What a cache's layer knows of the model's attention; told when the cache is made, and never after."""

    scale: float  # of queries times keys
    output_weight: Tensor | None = None  # [hidden, heads * head_dim], where the policy weighs by it


@dataclass(frozen=True)
class Chunk:
    """A stretch of one lane's text that is fed at once: its prompt, or output that is already known."""

    lane: int
    start: int  # position of its first token
    tokens: int
    known_output: bool = False

    @property
    def end(self) -> int:
        return self.start + self.tokens


def causal_mask(chunk: Chunk, device: torch.device) -> Any:
    """Each of a chunk's queries sees the tokens up to its own, [tokens, end]; None where none came before.

    For scaled_dot_product_attention, whose `is_causal` is this mask where it is square.
    """
    if chunk.start == 0:
        return None
    if device.type == "cuda":  # a mask that takes no memory, and whose import takes seconds
        from torch.nn.attention.bias import causal_lower_right

        return causal_lower_right(chunk.tokens, chunk.end)
    return torch.ones(chunk.tokens, chunk.end, dtype=torch.bool, device=device).tril(chunk.start)


def put(into: Tensor, at: tuple[Any, ...], new: Tensor, runs: Tensor) -> None:
    """`into[at] = new` in the lanes that run; the others write back what stands there.

    runs: bool, [lanes, 1, ...]. Not scatter_, for which a compiled step would copy the whole buffer.
    """
    into[at] = torch.where(runs, new, into[at])


class SlotLayer:
    """The buffers of one attention layer.

    keys, values: [lanes, kv_heads, slots, head_dim]
    positions: [lanes, kv_heads, slots], FREE where nothing is held
    bias: [lanes, kv_heads, 1, slots], 0 where a token is held, else -inf
    most_held: tokens; the slots are as many in whole steps, and those beyond stay free
    """

    def __init__(self, cache: "ScopeCache", index: int, geometry: LayerGeometry) -> None:
        self.cache, self.index, self.geometry = cache, index, geometry
        self.slots = slots = cache.shape.layer_slots(index, geometry)
        self.most_held = cache.shape.most_held(index, geometry)
        own = cache.attention.get(index, LayerAttention(geometry.head_dim**-0.5))
        self.scale, self.output_weight = own.scale, own.output_weight
        self.read_slots = slots  # the prefix of the slots that a step reads
        self.head_numbers = torch.arange(geometry.kv_heads, device=cache.device).unsqueeze(0)
        self.received: Tensor | None = None  # [kv_heads, tokens], attention that the prompt got so far
        like: dict[str, Any] = {"dtype": cache.dtype, "device": cache.device}
        head = (cache.shape.lanes, geometry.kv_heads)
        # Zeros, because a NaN would spread through a mask.
        self.keys = torch.zeros(*head, slots, geometry.head_dim, **like)
        self.values = torch.zeros(*head, slots, geometry.head_dim, **like)
        self.positions = torch.full((*head, slots), FREE, dtype=torch.int32, device=cache.device)
        self.bias = torch.full((*head, 1, slots), -INF, **like)

    def tensors(self) -> dict[str, Tensor]:
        return {"keys": self.keys, "values": self.values, "positions": self.positions, "bias": self.bias}

    def reset(self, lane: int) -> None:
        self.positions[lane] = FREE
        self.bias[lane] = -INF

    def wipe(self, lane: int) -> None:
        """Zeros again, after numbers that were none."""
        self.keys[lane] = self.values[lane] = 0

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Store a chunk of a prompt; what its queries see: keys, values, mask."""
        raise NotImplementedError

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store a token per lane, [lanes, kv_heads, 1, head_dim]; what its query sees: keys, values, bias."""
        raise NotImplementedError

    def remember(self, queries: Tensor, chunk: Chunk | None) -> None:
        """Keep what a scorer will want to know about these queries, [lanes, heads, tokens, head_dim]."""

    @property
    def counts_received(self) -> bool:
        """Whether a scorer wants to know how much attention each prompt token got."""
        return False

    def add_received(self, attention: Tensor) -> None:
        """Add what a chunk's queries gave to the prompt read so far, [kv_heads, tokens]."""
        if self.received is not None:
            attention[:, : self.received.shape[1]] += self.received
        self.received = attention

    @cached_property
    def read_lengths(self) -> list[int]:
        """The prefixes that a compiled step may read: three at most, because each is compiled by itself.

        The prompt and a quarter of the rest, a half, all; but none that saves less than a fifth of the next.
        """
        prompt = self.cache.shape.prompt_slots[self.index]
        lengths = [self.slots]
        for parts in (2, 4):
            shorter = whole_steps(prompt + (self.slots - prompt) // parts, self.cache.read_step)
            if shorter <= 0.8 * lengths[0]:
                lengths.insert(0, shorter)
        return lengths

    def set_read_slots(self, used: int) -> None:
        """Read as little as covers `used` slots."""
        if self.cache.fixed_reads:
            self.read_slots = next(length for length in self.read_lengths if length >= used)
        else:
            self.read_slots = min(self.slots, whole_steps(used, self.cache.read_step))

    def _fill(self, slot: Tensor, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Put each lane's current token into `slot`, [lanes, kv_heads]; lanes that only ride along write
        nothing."""
        at = (self.cache.rows, self.head_numbers, slot)
        runs = self.cache.runs.unsqueeze(1)
        put(self.keys, at, keys[:, :, 0], runs.unsqueeze(2))
        put(self.values, at, values[:, :, 0], runs.unsqueeze(2))
        now = self.cache.next_position.to(torch.int32).unsqueeze(1)
        put(self.positions, at, now, runs)
        put(self.bias.squeeze(2), at, torch.zeros_like(slot, dtype=self.bias.dtype), runs)
        used = self.read_slots
        return self.keys[:, :, :used], self.values[:, :, :used], self.bias[..., :used]


class PolicyLayer(SlotLayer):
    """Full attention: prompt slots first, generated tokens in whatever slots are free.

    vacant: [lanes, kv_heads, evictable], slot numbers; a lane's entries from `held` on are its free slots,
    those before mean nothing. Every KV head has its own list, because heads forget different tokens.
    queries: [lanes, heads, ring, head_dim], the newest queries
    """

    def __init__(self, cache: "ScopeCache", index: int, geometry: LayerGeometry) -> None:
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
        self.keys[lane, :, new] = keys[0]
        self.values[lane, :, new] = values[0]
        self.positions[lane, :, new] = torch.arange(chunk.start, chunk.end, device=keys.device)
        self.bias[lane, :, :, new] = 0
        seen = (slice(lane, lane + 1), slice(None), slice(chunk.end))
        return self.keys[seen], self.values[seen], causal_mask(chunk, keys.device)

    def place(self, lane: int, keys: Tensor, values: Tensor, positions: Tensor) -> None:
        """Hold what was kept of a prompt, in the first slots.

        keys, values: [kv_heads, kept, head_dim]; positions: [kv_heads, kept], FREE where a head keeps fewer
        """
        kept = slice(positions.shape[1])
        self.keys[lane, :, kept] = keys
        self.values[lane, :, kept] = values
        self.positions[lane, :, kept] = positions
        self.bias[lane, :, 0, kept] = torch.zeros_like(positions, dtype=keys.dtype).masked_fill(
            positions == FREE, -INF
        )

    def write(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        nth = self.cache.held.unsqueeze(1)
        slot = self.vacant[self.cache.rows, self.head_numbers, nth].long()
        for memo in self.memos.values():
            at = (self.cache.rows, self.head_numbers, slot)
            put(memo, at, torch.zeros_like(slot, dtype=memo.dtype), self.cache.runs.unsqueeze(1))
        return self._fill(slot, keys, values)

    def _feed(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Store known output; every KV head has its own slots, so the mask is [1, heads, tokens, slots]."""
        lane, head_dim = slice(chunk.lane, chunk.lane + 1), self.geometry.head_dim
        first = self.cache.count(chunk.lane).held
        slots = self.vacant[lane, :, first : first + chunk.tokens].long()
        into = slots.unsqueeze(-1).expand(-1, -1, -1, head_dim)
        self.keys[lane].scatter_(2, into, keys)
        self.values[lane].scatter_(2, into, values)
        new = torch.arange(chunk.start, chunk.end, dtype=torch.int32, device=keys.device)
        self.positions[lane].scatter_(2, slots, new.expand_as(slots))
        self.bias[lane].scatter_(
            3, slots.unsqueeze(2), torch.zeros_like(slots.unsqueeze(2), dtype=keys.dtype)
        )
        for memo in self.memos.values():
            memo[lane].scatter_(2, slots, 0)
        held = self.positions[lane].unsqueeze(2)  # [1, kv_heads, 1, slots]
        seen = (held >= 0) & (held <= new.view(1, 1, -1, 1))
        group = self.geometry.heads // self.geometry.kv_heads
        return self.keys[lane], self.values[lane], seen.repeat_interleave(group, 1)

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


def forget_in(layer: PolicyLayer, facts: Tensor, most: int) -> None:
    """One layer's part of `ScopeCache.forget`."""
    policy = layer.cache.policy
    view = SlotView(layer.cache, layer, facts)
    policy.scorer.observe(view)
    if most:
        layer.evict(policy.scores(view), view.is_candidate, facts[3], most)


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


@dataclass
class LaneCount:
    """What the host knows of a lane without asking the device."""

    schedule: Schedule
    prompt: int = 0  # prompt tokens read
    kept: tuple[int, ...] | None = None  # of them, those kept in each layer, per KV head; None: all of them
    written: int = 0  # generated tokens written (n)
    held: int = 0  # held of what the schedule limits
    most_held: int = 0
    active: bool = False  # writes a token at every step: its prompt is read, and it has not ended
    evictions: int = 0
    evicted_tokens: int = 0
    aged_tokens: int = 0  # of them, those that left with every other candidate: the scorer had no choice
    moved_bytes: int = 0
    reference_moved_bytes: int = 0
    host_bytes: int = 0


TOTALS = ("evictions", "evicted_tokens", "moved_bytes", "reference_moved_bytes", "host_bytes")


class ScopeCache:
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
        self.fitted = 0  # how often the policy layers got other buffers
        self.rows = torch.arange(shape.lanes, device=device).unsqueeze(1)  # [lanes, 1]
        kinds = {"full": PolicyLayer, "window": WindowLayer}
        self.layers: list[SlotLayer] = [
            kinds[layer.kind](self, index, layer) for index, layer in enumerate(geometry.layers)
        ]
        self.next_position = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.held = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.running = torch.zeros(shape.lanes, dtype=torch.int64, device=device)  # 1 where a step counts
        self.seeds = torch.zeros(shape.lanes, dtype=torch.int64, device=device)
        self.query_positions = torch.full((shape.lanes, shape.ring), FREE, dtype=torch.int64, device=device)
        self.lanes: list[LaneCount | None] = [None] * shape.lanes
        self.chunk: Chunk | None = None  # the part of a prompt that is being read; None while decoding
        self.fixed_reads = False  # a compiled step reads one of a few lengths
        self._past = dict.fromkeys(TOTALS, 0)  # of the prompts whose lanes have been given to others

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

    @property
    def policy_layers(self) -> list[PolicyLayer]:
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

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
        copied = self._held_bytes(count) + self._window_bytes(count.prompt)
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
            self._past = {name: total + getattr(count, name) for name, total in self._past.items()}
            self.lanes[lane] = None

    def start_chunk(self, lane: int, tokens: int) -> Tensor:
        """The next `tokens` of a lane's prompt are about to be read; their positions, [1, tokens]."""
        start = self.count(lane).prompt
        self.chunk = Chunk(lane, start, tokens)
        return torch.arange(start, start + tokens, device=self.device).unsqueeze(0)

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
            self._set_read_slots()
            self._observe_and_evict(excess, wrote, chunk.tokens)
            self.next_position[chunk.lane] = chunk.end
        else:
            count.prompt = chunk.end
            self._hold_prompt(count)

    def fit_prompt(self, prompt_slots: tuple[int, ...]) -> None:
        """Make the policy layers anew, where a prompt that was read turns out to need other sizes."""
        if prompt_slots == self.shape.prompt_slots:
            return
        assert self.shape.lanes == 1, "lanes share their sizes"
        self.shape = replace(self.shape, prompt_slots=prompt_slots)
        for layer in self.policy_layers:
            fitting = PolicyLayer(self, layer.index, layer.geometry)
            fitting.queries = layer.queries
            fitting.reset(0)
            self.layers[layer.index] = fitting
        self.fitted += 1
        for sizes in ("_alike", "_lane_sizes", "_read_bytes"):
            self.__dict__.pop(sizes, None)

    def make_room(self, prompt_slots: tuple[int, ...]) -> None:
        """At least so many slots for the next prompt."""
        if any(there < needed for there, needed in zip(self.shape.prompt_slots, prompt_slots, strict=True)):
            self.fit_prompt(prompt_slots)

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
        self._set_read_slots()
        for layer in self.policy_layers:
            if layer.received is not None:
                view = SlotView(self, layer)
                by_slot = view.positions.new_zeros(view.positions.shape, dtype=torch.float32)
                where = view.positions[lane].long()  # [kv_heads, slots]
                got = layer.received.float().gather(1, where.clamp(min=0))
                by_slot[lane] = got.masked_fill(where < 0, 0)
                self.policy.scorer.observe_prompt(view, by_slot)
                layer.received = None

    # Decoding

    def end_step(self) -> None:
        """Count the token that each active lane wrote, and evict where a lane holds more than it may."""
        ring = self.query_positions.shape[1]
        now = self.next_position
        put(self.query_positions, (self.rows[:, 0], now % ring), now, self.runs)
        self.held += self.running
        excess = [0] * len(self.lanes)
        for lane, count in enumerate(self.lanes):
            if count is not None and count.active:
                count.written += 1
                count.held += 1
                count.most_held = max(count.most_held, count.held)
                excess[lane] = count.schedule.excess(count.written, count.held)
        wrote = [count is not None and count.active for count in self.lanes]
        self._observe_and_evict(excess, wrote)
        self.next_position += self.running
        self._set_read_slots()

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

    def _set_read_slots(self) -> None:
        for layers in self._alike:
            used, before = self.used_slots(layers[0]), layers[0].read_slots
            layers[0].set_read_slots(used)
            if layers[0].read_slots != before:
                for layer in layers[1:]:
                    layer.set_read_slots(used)

    @property
    def read_step(self) -> int:
        """A step reads the used slots, rounded up to a multiple of this.

        How many are used depends on all lanes, and what one of them computes must not: a block more of masked
        keys adds exact zeros to attention, a part of a block may round the whole block otherwise. On a GPU
        the number of slots decides how they are divided between its units.
        """
        if self.shape.lanes == 1:
            return STEP
        return BLOCK if self.device.type == "cpu" else ALL

    @cached_property
    def _alike(self) -> list[list[SlotLayer]]:
        """Layers of one size, which fill at one pace."""
        groups: dict[tuple[type, int], list[SlotLayer]] = {}
        for layer in self.layers:
            groups.setdefault((type(layer), layer.most_held), []).append(layer)
        return list(groups.values())

    @cached_property
    def _lane_sizes(self) -> tuple[int, int, int]:
        """Of one lane: bytes of all buffers, bytes of keys and values, slots of a policy layer on average."""
        allocated = self.shape.cache_bytes(self.geometry, self.dtype.itemsize) // self.shape.lanes
        slot_bytes = sum(layer.slots * self._slot_bytes(layer) for layer in self.layers)
        slots = [layer.slots for layer in self.policy_layers]
        return allocated, slot_bytes, round(mean(slots)) if slots else 0

    @cached_property
    def _read_bytes(self) -> list[int]:
        """Keys, values and bias of one slot of one lane, in all layers of a size, by `_alike`."""
        return [
            sum(self._slot_bytes(layer) + layer.geometry.kv_heads * self.dtype.itemsize for layer in layers)
            for layers in self._alike
        ]

    def facts(self, excess: Sequence[int] | None = None, wrote: Sequence[bool] | None = None) -> Tensor:
        """What a view tells of the lanes: prompt, written, recent, to be evicted, wrote: [5, lanes, 1, 1].

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
        return facts.to(self.device).T.reshape(5, -1, 1, 1)

    def _observe_and_evict(self, excess: list[int], wrote: list[bool], tokens: int = 1) -> None:
        """One look at the slots of each layer, where the scorer or an eviction needs one.

        tokens: how many were written at once; who observes every step is shown each of them
        """
        scorer, most = self.policy.scorer, max(excess)
        if not most and not scorer.every_step:
            return
        if scorer.every_step and tokens > 1:
            past = self.facts(None, wrote)
            for layer in self.policy_layers:
                for ago in range(tokens - 1, 0, -1):
                    scorer.observe(SlotView(self, layer, past, ago))
        self.forget(self.facts(excess, wrote), most)
        for count, leaving in zip(self.lanes, excess, strict=True):
            if count is not None and leaving:
                count.held -= leaving
                if count.held <= count.schedule.recent + count.schedule.floor:
                    count.aged_tokens += leaving
                count.evictions += 1
                count.evicted_tokens += leaving
                count.reference_moved_bytes += self._held_bytes(count)

    def forget(self, facts: Tensor, most: int) -> None:
        """Show the scorer every layer, and free what leaves, `most` tokens of a lane at most.

        On the device alone, from `facts` and the buffers: it can be captured.
        """
        for layer in self.policy_layers:
            forget_in(layer, facts, most)
        self.count_gone(facts)

    def count_gone(self, facts: Tensor) -> None:
        """Every layer has let go of what leaves."""
        self.held -= facts[3].flatten()

    # What is counted

    def count(self, lane: int) -> LaneCount:
        count = self.lanes[lane]
        assert count is not None, f"lane {lane} has no prompt"
        return count

    def _held_bytes(self, count: LaneCount) -> int:
        """Keys and values of everything that a lane holds in the policy layers."""
        held = count.held * self._token_bytes
        return held + self._prompt_bytes(count) if self.policy.protect_prompt else held

    def _prompt_bytes(self, count: LaneCount) -> int:
        """Keys and values of what was kept of a lane's prompt."""
        if count.kept is None:
            return count.prompt * self._token_bytes
        return sum(count.kept[layer.index] * self._slot_bytes(layer) for layer in self.policy_layers)

    def _mean_kept(self, kept: tuple[int, ...]) -> int:
        by_layer = [kept[layer.index] for layer in self.policy_layers]
        return round(mean(by_layer)) if by_layer else 0

    def _slot_bytes(self, layer: SlotLayer) -> int:
        return layer.geometry.slot_bytes(self.dtype.itemsize)

    def used_slots(self, layer: SlotLayer) -> int:
        """One more than the highest slot that any lane has ever filled, the token being written included."""
        counts = [count for count in self.lanes if count is not None]
        if isinstance(layer, WindowLayer):
            seen = max((count.prompt + count.written + 1 for count in counts), default=0)
            return min(layer.most_held, seen)
        taken = max((max(count.most_held, count.held + 1) for count in counts), default=0)
        return min(layer.most_held, taken + self.shape.prompt_slots[layer.index])

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, flat: with the lanes' counts, all that a lane's future depends on."""
        own = {
            name: getattr(self, name)
            for name in ("next_position", "held", "running", "seeds", "query_positions")
        }
        for layer in self.layers:
            own |= {f"layers.{layer.index}.{name}": tensor for name, tensor in layer.tensors().items()}
        return own

    def reading(self, lane: int | None = None) -> Reading:
        """What the lanes hold and have done, or one of them: arithmetic on shapes and counters.

        Nothing waits for the device. An unprotected prompt is the exception: how much of it is left takes a
        look at the positions.
        """
        chosen = range(len(self.lanes)) if lane is None else (lane,)
        counts = [(index, count) for index in chosen if (count := self.lanes[index]) is not None]
        held_bytes = full_bytes = padding_bytes = kept_prompt = kept_generated = 0
        for index, count in counts:
            seen = count.prompt + count.written
            held_bytes += self._held_bytes(count) + self._window_bytes(seen)
            full_bytes += seen * self._token_bytes + self._window_bytes(seen)
            if self.policy.protect_prompt:
                kept_prompt += count.prompt if count.kept is None else self._mean_kept(count.kept)
                kept_generated += count.held
                padding_bytes += self._prompt_slot_bytes - self._prompt_bytes(count)
            else:
                prompt = self._live_prompt(index)
                kept_prompt += prompt
                kept_generated += count.held - prompt
        allocated, slot_bytes, slots = self._lane_sizes
        totals = {
            name: (past if lane is None else 0) + sum(getattr(count, name) for _, count in counts)
            for name, past in self._past.items()
        }
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
                for layers, bytes_of_a_slot in zip(self._alike, self._read_bytes, strict=True)
            ),
            **totals,
        )

    def audit(self, lane: int | None = None, prompt: int | None = None, written: int | None = None) -> Audit:
        """Count the slots themselves, of one lane or of all, and compare with what the readings say.

        prompt, written: tokens that were fed to the lane, as who fed them counted; the cache's own numbers
            are compared with them.
        """
        problems = []
        reading = self.reading(lane)
        chosen = slice(None) if lane is None else slice(lane, lane + 1)
        buffers = sum(tensor[chosen].nbytes for tensor in self.tensors().values())
        if buffers != reading.allocated_bytes:
            problems.append(f"buffers take {buffers} bytes, the reading says {reading.allocated_bytes}")
        live = sum(
            int((layer.positions[chosen] >= 0).sum()) * 2 * layer.geometry.head_dim * self.dtype.itemsize
            for layer in self.layers
        )
        if live != reading.held_bytes:
            problems.append(f"live slots take {live} bytes, the reading says {reading.held_bytes}")
        counts = [(index, count) for index, count in enumerate(self.lanes) if count and lane in (None, index)]
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
        for layer in self.layers:
            positions = layer.positions[lane]  # [kv_heads, slots]
            if isinstance(layer, WindowLayer):
                last = min(prompt + written, layer.most_held)
                newest = positions >= prompt + written - last
                if newest.sum(-1).ne(last).any() or (positions >= 0).sum(-1).ne(last).any():
                    yield f"layer {layer.index}: the window does not hold the newest {last} tokens"
                continue
            kept = prompt if count.kept is None else count.kept[layer.index]
            old, new = ((positions >= 0) & (positions < prompt)).sum(-1), (positions >= prompt).sum(-1)
            if not self.policy.protect_prompt:
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
        if limit is None or not self.policy_layers:
            return False
        newest = min(schedule.recent, count.written)
        recent_gone = any(
            bool(((layer.positions[lane] >= seen - newest).sum(-1) != newest).any())
            for layer in self.policy_layers
        )
        return count.most_held > max(limit + 1, schedule.base + 1) or recent_gone

    def _live_prompt(self, lane: int) -> int:
        """Prompt tokens left of an unprotected prompt, averaged over heads and layers."""
        positions = [layer.positions[lane] for layer in self.policy_layers]
        prompt = self.count(lane).prompt
        live = sum(((where >= 0) & (where < prompt)).sum() for where in positions)
        return round(float(live) / max(1, sum(where.shape[0] for where in positions)))

    def _window_bytes(self, seen: int) -> int:
        return sum(
            min(seen, layer.most_held) * layer.geometry.slot_bytes(self.dtype.itemsize)
            for layer in self.layers
            if isinstance(layer, WindowLayer)
        )

    @cached_property
    def _token_bytes(self) -> int:
        """Of one token in all policy layers."""
        return sum(self._slot_bytes(layer) for layer in self.policy_layers)

    @property
    def _prompt_slot_bytes(self) -> int:
        """Of the slots that are kept for a lane's prompt."""
        return sum(layer.first_evictable * self._slot_bytes(layer) for layer in self.policy_layers)
