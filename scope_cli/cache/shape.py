"""The sizes of every buffer of a cache, and of those that a prompt is staged in; no torch."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING

from scope_cli.formats.base import PLAIN, SlotFormat
from scope_cli.geometry import Geometry, LayerGeometry

if TYPE_CHECKING:
    from scope_cli.policies.prefills.base import Prefill
    from scope_cli.policies.wrappers.base import Wrapper

POSITION_BYTES = 4  # positions and slot lists are int32
MEMO_BYTES = 4  # float32
COUNTER_BYTES = 8  # per-lane counters are int64
LOOKED_AT = 2**20  # 32-bit numbers that an eviction computes at once, beside one layer's keys
STEP = 64  # slots come, and are read, in whole steps: few lengths, none odd (float32 rounds those apart)


def whole_steps(slots: int, step: int = STEP) -> int:
    return -(-slots // step) * step


@dataclass(frozen=True)
class CacheShape:
    """The sizes of every buffer of a cache."""

    lanes: int
    prompt_slots: tuple[int, ...]  # of each layer, never evicted; 0 where the prompt is not protected
    evictable: int  # slots after them, of each policy layer, which an eviction may free
    context: int  # prompt and output tokens at most: a sliding window never needs more slots
    ring: int = 1  # queries remembered per lane and layer
    memos: int = 0  # float32 values beside each slot of a policy layer
    form: SlotFormat = PLAIN  # in which keys and values lie
    exact: int = 0  # newest generated tokens that are also held as they are, none of which is evicted
    beyond: bool = False  # RoPE's factors are those for texts longer than the geometry's `switch`

    def layer_slots(self, index: int, layer: LayerGeometry) -> int:
        """What is allocated: what can ever be held, in whole steps."""
        return whole_steps(self.most_held(index, layer))

    def most_held(self, index: int, layer: LayerGeometry) -> int:
        if layer.kind == "full":
            return self.prompt_slots[index] + self.evictable
        return min(layer.window, self.context)

    def slot_list(self, layer: LayerGeometry) -> int:
        """Entries of a layer's list of free slots; a sliding window overwrites in order and needs none."""
        return self.evictable if layer.kind == "full" else 0

    def layer_bytes(self, index: int, layer: LayerGeometry, dtype_bytes: int) -> int:
        """Keys, values, positions, bias, slot list, memos and query ring of one layer, all lanes."""
        slots = self.layer_slots(index, layer)
        per_head = slots * (POSITION_BYTES + dtype_bytes) + self.slot_list(layer) * POSITION_BYTES
        ring = 0
        if layer.kind == "full":
            ring = self.ring * layer.heads * layer.head_dim * dtype_bytes
            per_head += self.memos * slots * MEMO_BYTES
        exact = self.exact_of(index, layer)  # keys, values, bias, slots
        per_head += exact * (2 * layer.head_dim * dtype_bytes + dtype_bytes + POSITION_BYTES)
        return self.lanes * (slots * self.slot_bytes(layer, dtype_bytes) + layer.kv_heads * per_head + ring)

    def exact_of(self, index: int, layer: LayerGeometry) -> int:
        """Tokens of a layer that are also held as they are."""
        return min(self.exact, self.most_held(index, layer)) if self.form.packs else 0

    def slot_bytes(self, layer: LayerGeometry, dtype_bytes: int) -> int:
        """Key and value of one token in a layer, all KV heads, scales included."""
        return self.form.slot_bytes(layer, dtype_bytes)

    def looked_at_once(self, index: int, layer: LayerGeometry) -> int:
        """So many layers of this size are shown to a scorer together, where it can take them so."""
        return max(1, LOOKED_AT // (self.lanes * self.layer_slots(index, layer) * self.slot_numbers(layer)))

    def slot_numbers(self, layer: LayerGeometry) -> int:
        """That an eviction computes for a slot: logits twice, or an order in int64; and masks."""
        return max(2 * layer.heads * self.ring, 6 * layer.kv_heads) + 2 * layer.kv_heads

    def space(self, geometry: Geometry) -> int:
        """Numbers into which the keys and values of one lane of the largest layer are unpacked."""
        if not self.form.packs:
            return 0
        return max(
            2
            * layer.kv_heads
            * layer.head_dim
            * (self.layer_slots(index, layer) + self.exact_of(index, layer))
            for index, layer in enumerate(geometry.layers)
        )

    def cache_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """What a ScopeCache of this shape allocates, to the byte."""
        counters = self.lanes * COUNTER_BYTES * 4  # next position, held, running, seed
        ring_positions = self.lanes * COUNTER_BYTES * self.ring
        return (
            counters
            + ring_positions
            + self.lanes * self.space(geometry) * dtype_bytes
            + sum(self.layer_bytes(index, layer, dtype_bytes) for index, layer in enumerate(geometry.layers))
        )


@dataclass(frozen=True)
class PromptPlan:
    """How a prompt is read and what stays of it."""

    method: Prefill
    wrappers: tuple[Wrapper, ...]
    prompt_tokens: int
    window: int  # the last prompt tokens, always kept
    kept: tuple[
        int, ...
    ]  # prompt tokens per KV head, by layer (0 for a sliding window); an average for adakv
    staged: bool  # read into buffers of its own, from which the kept tokens are copied
    late: bool  # how many slots each layer needs is known only when the prompt has been read

    @property
    def draws(self) -> bool:
        """Whether chance, and so the seed, decides what stays of it."""
        return self.staged and (self.method.draws or any(wrapper.draws for wrapper in self.wrappers))

    @property
    def ring(self) -> int:
        """How many of the prompt's last queries somebody looks at."""
        wanted = [self.method.ring(self.window), *(wrapper.ring(self.window) for wrapper in self.wrappers)]
        return min(self.prompt_tokens, max(wanted))

    def staged_form(self, form: SlotFormat) -> SlotFormat:
        """In which formats a prompt is staged for a cache of `form`: a token is packed once."""
        return PLAIN if any(wrapper.rewrites for wrapper in self.wrappers) else form

    def staging_bytes(self, geometry: Geometry, dtype_bytes: int, form: SlotFormat = PLAIN) -> int:
        """Keys, values, last queries and sums of the whole prompt, until what stays is known."""
        if not self.staged:
            return 0
        staged = self.staged_form(form)
        return sum(
            self.prompt_tokens * layer.kv_heads * staged.token_bytes(layer.head_dim, dtype_bytes)
            + self.ring * layer.heads * layer.head_dim * dtype_bytes
            + sum(prod(size) for size in self.method.memos(layer, self.prompt_tokens).values()) * MEMO_BYTES
            for layer in geometry.layers
            if layer.kind == "full"
        )
