"""The buffers of one layer's slots: filled and freed in place, never moved, concatenated or reallocated.

Attention does not care about the order of slots, because keys carry their rotation; a token's age is its
position, never its slot.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.exact import ExactTokens
from scope_cli.cache.policy_slots import FREE, INF
from scope_cli.cache.shape import whole_steps
from scope_cli.cache.store import Parts, Put, SlotStore, put
from scope_cli.geometry import LayerGeometry

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


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


@dataclass(frozen=True)
class Causal:
    """Each of a chunk's queries sees the tokens up to its own, the newest `window` of them."""

    tokens: int  # of the chunk, the last of those
    seen: int  # altogether
    window: int | None = None

    def mask(self, device: torch.device) -> Any:
        """For scaled_dot_product_attention, [tokens, seen]; None: its `is_causal` is this mask."""
        if self.window is None and self.tokens == self.seen:
            return None
        if self.window is None and device.type == "cuda":  # takes no memory, but seconds to import
            from torch.nn.attention.bias import causal_lower_right

            return causal_lower_right(self.tokens, self.seen)
        at = torch.arange(self.seen, device=device)
        distance = at[self.seen - self.tokens :, None] - at
        visible = distance >= 0
        return visible if self.window is None else visible & (distance < self.window)


class SlotLayer:
    """The buffers of one attention layer.

    store: keys and values, [lanes, kv_heads, slots, ...] in their formats
    exact: the newest tokens as they are, where slots are packed and some are wanted so
    positions: [lanes, kv_heads, slots], FREE where nothing is held
    bias: [lanes, kv_heads, 1, slots], 0 where attention is to see a token, else -inf
    most_held: tokens; the slots are as many in whole steps, and those beyond stay free
    """

    def __init__(
        self, cache: ScopeCache, index: int, geometry: LayerGeometry, positions: Tensor, bias: Tensor
    ) -> None:
        self.cache, self.index, self.geometry = cache, index, geometry
        self.positions, self.bias = positions, bias
        self.slots = slots = cache.shape.layer_slots(index, geometry)
        self.most_held = cache.shape.most_held(index, geometry)
        own = cache.attention.get(index, LayerAttention(geometry.head_dim**-0.5))
        self.scale, self.output_weight = own.scale, own.output_weight
        self.read_slots = slots  # the prefix of the slots that a step reads
        self.head_numbers = torch.arange(geometry.kv_heads, device=cache.device).unsqueeze(0)
        self.received: Tensor | None = None  # [kv_heads, tokens], attention that the prompt got so far
        head = (cache.shape.lanes, geometry.kv_heads)
        self.store = SlotStore(cache.shape.form, head, slots, geometry.head_dim, cache.dtype, cache.device)
        exact = cache.shape.exact_of(index, geometry)
        self.exact = ExactTokens(self, exact) if exact else None

    @property
    def keys(self) -> Tensor:
        """Their numbers, as they are stored: [lanes, kv_heads, slots, ...]."""
        return self.store.keys[0]

    @property
    def values(self) -> Tensor:
        return self.store.values[0]

    def tensors(self) -> dict[str, Tensor]:
        own = {**self.store.tensors(), "positions": self.positions, "bias": self.bias}
        return {**own, **self.exact.tensors()} if self.exact else own

    def reset(self, lane: int) -> None:
        self.positions[lane] = FREE
        self.bias[lane] = -INF
        if self.exact:
            self.exact.reset(lane)

    def wipe(self, lane: int) -> None:
        """Zeros again, after numbers that were none."""
        for part in self.store.parts:
            part[lane] = 0
        if self.exact:
            self.exact.wipe(lane)

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Store a chunk of a prompt; what its queries, turned as the keys are, see: keys, values, mask."""
        raise NotImplementedError

    def hold(self, chunk: Chunk, keys: Tensor, values: Tensor, put: Put) -> tuple[Parts, Causal] | None:
        """Store a chunk in slots that `put` fills; what its queries see: packed, [kv_heads, seen, ...], and
        which of it. None where this layer's `read` has to say it."""
        raise NotImplementedError

    def write(self, keys: Tensor, values: Tensor) -> None:
        """Store a token per lane, [lanes, kv_heads, 1, head_dim]."""
        raise NotImplementedError

    def seen(self) -> tuple[Tensor, Tensor, Tensor]:
        """What a step's queries, turned as the keys are, see: keys, values, bias.

        A prefix of the slots, and what is exact. Where slots are packed they are unpacked into the space that
        all layers share; a compiled step makes its own.
        """
        used, exact = self.read_slots, self.exact
        into = None if torch.compiler.is_compiling() else self.cache.space
        at = (slice(None), slice(None), slice(used))
        keys, values = self.store.turned(at, into, exact.tokens if exact else 0)
        bias = self.bias[..., :used]
        if exact is None:
            return keys, values, bias
        keys[:, :, used:], values[:, :, used:] = exact.keys, exact.values
        return keys, values, torch.cat([bias, exact.bias], -1)

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

    def _fill(self, slot: Tensor, keys: Tensor, values: Tensor) -> None:
        """Put each lane's current token into `slot`, [lanes, kv_heads]; lanes that only ride along write
        nothing."""
        at = (self.cache.rows, self.head_numbers, slot)
        runs = self.cache.runs.unsqueeze(1)
        keys, values = self.store.turn(keys[:, :, 0], values[:, :, 0])
        if self.exact:
            self.exact.write(keys, values, slot)
        self.store.put(at, keys, values, runs)
        now = self.cache.next_position.to(torch.int32).unsqueeze(1)
        put(self.positions, at, now, runs)
        veiled = torch.full_like(slot, -INF if self.exact else 0, dtype=self.bias.dtype)
        put(self.bias.squeeze(2), at, veiled, runs)
