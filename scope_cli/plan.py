"""Profile, geometry and prompt length in; planned tokens, slots and bytes out. No torch: arithmetic alone."""

from dataclasses import dataclass

from scope_cli.errors import UsageError
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.profile import LoadedProfile
from scope_cli.schedule import Schedule

POSITION_BYTES = 4  # positions and slot lists are int32
MEMO_BYTES = 4  # float32
COUNTER_BYTES = 8  # per-lane counters are int64


@dataclass(frozen=True)
class CacheShape:
    """The sizes of every buffer of a cache."""

    lanes: int
    prompt_slots: int  # of a policy layer; the slots after them hold generated tokens
    slots: int
    evictable: int  # how many of the slots, counted from the end, an eviction may free
    context: int  # prompt and output tokens at most: a sliding window never needs more slots
    ring: int = 1  # queries remembered per lane and layer
    memos: int = 0  # float32 values beside each slot of a policy layer

    def layer_slots(self, layer: LayerGeometry) -> int:
        return self.slots if layer.kind == "full" else min(layer.window, self.context)

    def slot_list(self, layer: LayerGeometry) -> int:
        """Entries of a layer's list of free slots; a sliding window overwrites in order and needs none."""
        return self.evictable if layer.kind == "full" else 0

    def layer_bytes(self, layer: LayerGeometry, dtype_bytes: int) -> int:
        """Keys, values, positions, bias, slot list, memos and query ring of one layer, all lanes."""
        slots = self.layer_slots(layer)
        per_head = slots * (POSITION_BYTES + dtype_bytes) + self.slot_list(layer) * POSITION_BYTES
        ring = 0
        if layer.kind == "full":
            ring = self.ring * layer.heads * layer.head_dim * dtype_bytes
            per_head += self.memos * slots * MEMO_BYTES
        return self.lanes * (slots * layer.slot_bytes(dtype_bytes) + layer.kv_heads * per_head + ring)

    def cache_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """What a ScopeCache of this shape allocates, to the byte."""
        counters = self.lanes * COUNTER_BYTES * 4  # next position, held, running, seed
        ring_positions = self.lanes * COUNTER_BYTES * self.ring
        return (
            counters + ring_positions + sum(self.layer_bytes(layer, dtype_bytes) for layer in geometry.layers)
        )


@dataclass(frozen=True)
class RunPlan:
    prompt_tokens: int
    max_new_tokens: int
    ends_with_context: bool  # the planned length is what the model's context leaves, not what was asked for
    schedule: Schedule
    shape: CacheShape
    notes: tuple[str, ...]


def plan_run(
    loaded: LoadedProfile,
    geometry: Geometry,
    prompt_tokens: int,
    *,
    ring: int = 1,
    memos: int = 0,
    lanes: int = 1,
) -> RunPlan:
    """Decide the output length and the cache's shape; `ring` and `memos` are what the scorer asks for.

    Raises UsageError where the prompt, or an output length that was typed, does not fit the model's context.
    """
    profile = loaded.profile
    left = geometry.context - prompt_tokens
    if prompt_tokens == 0:
        raise UsageError("the prompt is empty", "nothing came from the argument, the file or standard input")
    if left < 1:
        raise UsageError(
            f"the prompt has {prompt_tokens:,} tokens, the model's context is {geometry.context:,}",
            "shorten the prompt, or take a model with a longer context",
        )
    asked = profile.sampling.max_new_tokens
    if asked is not None and asked > left and "sampling.max_new_tokens" in loaded.typed:
        raise UsageError(
            f"{asked:,} new tokens after a prompt of {prompt_tokens:,} exceed the model's context of "
            f"{geometry.context:,}",
            f"at most --max-new-tokens {left} fits",
        )
    planned = left if asked is None else min(asked, left)
    notes = []
    if asked is not None and asked > left:
        notes.append(f"output cut from {asked:,} to {planned:,} tokens: all that the model's context leaves")
    schedule = Schedule.of(profile.decode, planned, kept_prompt=prompt_tokens)
    if profile.decode.strategy != "full" and not geometry.policy_layers:
        notes.append(
            "every layer of this model has a sliding window of its own: the strategy has nothing to govern"
        )
    protect = profile.decode.protect_prompt
    slots = prompt_tokens + schedule.most_held if protect else schedule.most_held
    return RunPlan(
        prompt_tokens=prompt_tokens,
        max_new_tokens=planned,
        ends_with_context=planned == left and planned != asked,
        schedule=schedule,
        shape=CacheShape(
            lanes=lanes,
            prompt_slots=prompt_tokens,
            slots=slots,
            evictable=slots - prompt_tokens if protect else slots,
            context=prompt_tokens + planned,
            ring=ring,
            memos=memos,
        ),
        notes=tuple(notes),
    )
