"""Profile, geometry and prompt length in; planned tokens, slots and bytes out: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import prod
from typing import TYPE_CHECKING

from scope_cli import plugins
from scope_cli.errors import UsageError
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.profile import LoadedProfile, PrefillSettings
from scope_cli.schedule import Schedule, nothing_to_choose

if TYPE_CHECKING:
    from scope_cli.prefills.base import Prefill
    from scope_cli.wrappers.base import Wrapper

POSITION_BYTES = 4  # positions and slot lists are int32
MEMO_BYTES = 4  # float32
COUNTER_BYTES = 8  # per-lane counters are int64
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
        return self.lanes * (slots * layer.slot_bytes(dtype_bytes) + layer.kv_heads * per_head + ring)

    def cache_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """What a ScopeCache of this shape allocates, to the byte."""
        counters = self.lanes * COUNTER_BYTES * 4  # next position, held, running, seed
        ring_positions = self.lanes * COUNTER_BYTES * self.ring
        return (
            counters
            + ring_positions
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

    def staging_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """Keys, values, last queries and sums of the whole prompt, until what stays is known."""
        if not self.staged:
            return 0
        return sum(
            self.prompt_tokens * layer.slot_bytes(dtype_bytes)
            + self.ring * layer.heads * layer.head_dim * dtype_bytes
            + sum(prod(size) for size in self.method.memos(layer, self.prompt_tokens).values()) * MEMO_BYTES
            for layer in geometry.layers
            if layer.kind == "full"
        )


@dataclass(frozen=True)
class RunPlan:
    prompt_tokens: int
    max_new_tokens: int
    ends_with_context: bool  # the planned length is what the model's context leaves, not what was asked for
    schedule: Schedule
    shape: CacheShape  # where the prompt decides (`prompt.late`), the largest that it can become
    prompt: PromptPlan
    notes: tuple[str, ...]

    @property
    def starting_shape(self) -> CacheShape:
        """What is allocated before the prompt is read."""
        if not self.prompt.late:
            return self.shape
        return replace(self.shape, prompt_slots=(0,) * len(self.shape.prompt_slots))

    def peak_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """The cache and, while the prompt is read, the buffers it is staged in."""
        staged = self.prompt.staging_bytes(geometry, dtype_bytes)
        return self.shape.cache_bytes(geometry, dtype_bytes) + staged


def plan_run(
    loaded: LoadedProfile,
    geometry: Geometry,
    prompt_tokens: int,
    *,
    ring: int = 1,
    memos: int = 0,
) -> RunPlan:
    """Decide the output length and the shape of a cache of one lane; the scorer asks for `ring` and `memos`.

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
    beyond = False
    if (switch := geometry.switch) is not None:  # once for the whole run: keys of one text turn alike
        beyond = (geometry.context if profile.model.context else prompt_tokens + planned) > switch
        which = f"more than {switch:,}" if beyond else f"up to {switch:,}"
        notes.append(f"RoPE has the factors for texts of {which} tokens from the first token on")
    if geometry.made_for is not None:
        notes.append(
            f"a context of {geometry.context:,} tokens; the model was made for {geometry.made_for:,}"
        )
    prompt = plan_prompt(profile.prefill, geometry, prompt_tokens)
    notes += prompt_notes(profile.prefill, prompt)
    kept = max(prompt.kept, default=0) if geometry.policy_layers else prompt_tokens
    schedule = Schedule.of(profile.decode, planned, kept_prompt=kept)
    if profile.decode.strategy != "full" and not geometry.policy_layers:
        notes.append(
            "every layer of this model has a sliding window of its own: the strategy has nothing to govern"
        )
    elif (told := nothing_to_choose(profile.decode, planned, kept)) is not None:
        notes.append(told)
    most = prompt.kept
    for wrapper in prompt.wrappers if prompt.staged else ():
        most = tuple(wrapper.most(tokens, prompt_tokens) for tokens in most)
    return RunPlan(
        prompt_tokens=prompt_tokens,
        max_new_tokens=planned,
        ends_with_context=planned == left and planned != asked,
        schedule=schedule,
        shape=CacheShape(
            lanes=1,
            prompt_slots=most if profile.decode.protect_prompt else (0,) * len(geometry.layers),
            evictable=schedule.most_held,
            context=prompt_tokens + planned,
            ring=ring,
            memos=memos,
            beyond=beyond,
        ),
        prompt=prompt,
        notes=tuple(notes),
    )


def together(plans: Sequence[RunPlan], lanes: int) -> CacheShape:
    """One shape in which any of these runs fits, as many side by side as there are lanes.

    Raises UsageError where a prompt decides by itself how many slots it takes, and lanes must share theirs.
    """
    first = plans[0].shape
    late = any(plan.prompt.late for plan in plans)
    if late and lanes > 1:
        raise UsageError(
            "prefill.wrap (adakv, mass) gives every prompt buffers of its own size", "run one lane at a time"
        )
    if len({plan.shape.beyond for plan in plans}) > 1:
        raise UsageError(
            "this model has other factors of RoPE where a text gets long (longrope), and here some texts do: "
            "one run has one set of them",
            "--context N sets it for all, whatever their length; or run the long ones by themselves",
        )
    slots = zip(*(plan.shape.prompt_slots for plan in plans), strict=True)
    return CacheShape(
        lanes=lanes,
        prompt_slots=tuple(0 if late else max(layer) for layer in slots),
        evictable=max(plan.shape.evictable for plan in plans),
        context=max(plan.shape.context for plan in plans),
        ring=first.ring,
        memos=first.memos,
        beyond=first.beyond,
    )


def peak_bytes(plans: Sequence[RunPlan], lanes: int, geometry: Geometry, dtype_bytes: int) -> int:
    """The cache and, while a prompt is read, the buffers that the largest of them is staged in."""
    if any(plan.prompt.late for plan in plans):
        return max(plan.peak_bytes(geometry, dtype_bytes) for plan in plans)
    staged = max(plan.prompt.staging_bytes(geometry, dtype_bytes) for plan in plans)
    return together(plans, lanes).cache_bytes(geometry, dtype_bytes) + staged


def plan_prompt(settings: PrefillSettings, geometry: Geometry, prompt_tokens: int) -> PromptPlan:
    """How many prompt tokens each layer keeps, as far as sizes alone decide it."""
    method: Prefill = plugins.build("prefills", settings.method.name, settings.method.options)
    wrappers: tuple[Wrapper, ...] = tuple(
        plugins.build("wrappers", wrapper.name, wrapper.options) for wrapper in settings.wrap
    )
    budget = prompt_tokens
    if method.compresses and not any(wrapper.finds_budget for wrapper in wrappers):
        budget = tokens_of(settings.budget, prompt_tokens, settings.window)
    governed = [index for index, layer in enumerate(geometry.layers) if layer.kind == "full"]
    by_layer = [0] * len(geometry.layers)
    budgets = [prompt_tokens] * len(governed)
    if budget < prompt_tokens and governed:
        budgets = method.budgets(budget, prompt_tokens, settings.window, len(governed))
    for index, tokens in zip(governed, budgets, strict=True):
        by_layer[index] = tokens
    compresses = budget < prompt_tokens or any(wrapper.finds_budget for wrapper in wrappers)
    fits = prompt_tokens <= settings.window or not governed
    staged = not fits and (compresses or any(wrapper.rewrites for wrapper in wrappers))
    late = staged and any(wrapper.late for wrapper in wrappers)
    return PromptPlan(method, wrappers, prompt_tokens, settings.window, tuple(by_layer), staged, late)


def tokens_of(budget: int | str | None, prompt_tokens: int, window: int) -> int:
    """A budget in tokens: 1024, or "25%" of the prompt, at least the window and at most the prompt."""
    assert budget is not None, "the profile was checked"
    if isinstance(budget, str):
        budget = max(window, int(prompt_tokens * float(budget.removesuffix("%")) / 100))
    return min(budget, prompt_tokens)


def prompt_notes(settings: PrefillSettings, prompt: PromptPlan) -> list[str]:
    notes = []
    if not prompt.method.compresses and settings.budget is not None:
        notes.append(f"prefill.budget has no effect: {settings.method.name} keeps the whole prompt")
    notes += [
        f"{plugin.name}: {wrapper.frees_nothing}"
        for plugin, wrapper in zip(settings.wrap, prompt.wrappers, strict=True)
        if wrapper.frees_nothing and prompt.staged
    ]
    return notes
