"""A profile and a model's shape in, what a run will take out, and the largest that fits. No torch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from scope_cli.engine.fit import Needs
from scope_cli.engine.plan import LanePlan, shared_shape
from scope_cli.engine.run_plan import RunPlan, make_plan
from scope_cli.errors import UsageError
from scope_cli.formats.base import PLAIN
from scope_cli.models.shapes import ModelShape
from scope_cli.models.target import Target
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.policy import CacheSettings, DecodeSettings
from scope_cli.settings.schema import Profile

RUNTIME_BYTES = {"cpu": 410 * 2**20, "cuda": 512 * 2**20, "mps": 512 * 2**20}
"""Interpreter and libraries before any weight: measured on a CPU, an assumption for the others' contexts."""


@dataclass(frozen=True)
class Footprint:
    """Bytes of one run. Peaks are what is added to a process that has the weights loaded and is warm."""

    prompt_tokens: int
    output_tokens: int
    lanes: int
    weight_bytes: int
    runtime_bytes: int  # interpreter, libraries, the device's context
    lane_bytes: int  # one lane of the cache
    cache_bytes: int  # all lanes: what is allocated
    staging_bytes: int  # a prompt that is compressed, while it is read
    prefill_peak_bytes: int
    decode_peak_bytes: int
    held_peak_bytes: int  # keys and values of live slots
    held_mean_bytes: float  # over the output's tokens
    held_end_bytes: int
    full_end_bytes: int  # what an uncompressed cache holds at the end
    full_mean_bytes: float

    @property
    def total_bytes(self) -> int:
        """What has to be free before the start."""
        return self.runtime_bytes + self.weight_bytes + max(self.prefill_peak_bytes, self.decode_peak_bytes)

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "total_bytes": self.total_bytes}


def plan_of(settings: LoadedProfile, shape: ModelShape, prompt_tokens: int, lanes: int = 1) -> LanePlan:
    """The plan of a run from sizes alone."""
    plan = make_plan(settings, shape.geometry, prompt_tokens)
    return plan if lanes == 1 else replace(plan, shape=shared_shape([plan], lanes))


def footprint(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int = 1) -> Footprint:
    """Raises UsageError where prompt and output do not fit the model's context."""
    plan, shape = plan_of(settings, target.shape, prompt_tokens, lanes), target.shape
    takes = needs_of(settings, target, prompt_tokens, lanes)
    held = held_series(plan, settings.profile, target)
    full = full_series(plan, target)
    return Footprint(
        prompt_tokens=prompt_tokens,
        output_tokens=plan.max_new_tokens,
        lanes=lanes,
        weight_bytes=takes.weights,
        runtime_bytes=RUNTIME_BYTES[target.device],
        lane_bytes=replace(plan.shape, lanes=1).cache_bytes(shape.geometry, target.dtype_bytes),
        cache_bytes=takes.cache,
        staging_bytes=plan.prompt.staging_bytes(shape.geometry, target.dtype_bytes, plan.shape.form),
        prefill_peak_bytes=takes.cache + takes.reading,
        decode_peak_bytes=takes.cache + takes.writing,
        held_peak_bytes=lanes * max(held),
        held_mean_bytes=lanes * sum(held) / len(held),
        held_end_bytes=lanes * held[-1],
        full_end_bytes=lanes * full[-1],
        full_mean_bytes=lanes * sum(full) / len(full),
    )


def needs_of(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int = 1) -> Needs:
    """Raises UsageError where prompt and output do not fit the model's context."""
    plan = plan_of(settings, target.shape, prompt_tokens)
    return RunPlan.of(settings.profile, [plan], target.device, lanes).needs(target)


def held_series(plan: LanePlan, profile: Profile, target: Target) -> list[int]:
    """`held_bytes` of one lane, as each token of the output reports it: the last one is never written."""
    layers = target.shape.geometry.layers
    protect = profile.decode.protect_prompt
    policy = [(index, layer) for index, layer in enumerate(layers) if layer.kind == "full"]
    token = plan.shape.form.policy_token_bytes(target.shape.geometry, target.dtype_bytes)
    prompt = sum(
        (plan.prompt.kept[index] if protect else 0) * plan.shape.slot_bytes(layer, target.dtype_bytes)
        for index, layer in policy
    )
    held = plan.schedule.held(plan.max_new_tokens - 1)
    windows = window_series(plan, target, range(plan.prompt_tokens, plan.prompt_tokens + len(held)))
    return [prompt + tokens * token + window for tokens, window in zip(held, windows, strict=True)]


def held_by_token(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int) -> list[int]:
    """Keys and values of all lanes at each token of the output."""
    plan = plan_of(settings, target.shape, prompt_tokens)
    return [lanes * held for held in held_series(plan, settings.profile, target)]


def full_series(plan: LanePlan, target: Target) -> list[int]:
    """What an uncompressed cache of one lane holds; sliding windows are bounded in it, too."""
    plan = replace(plan, shape=replace(plan.shape, form=PLAIN))
    token = PLAIN.policy_token_bytes(target.shape.geometry, target.dtype_bytes)
    seen = range(plan.prompt_tokens, plan.prompt_tokens + plan.max_new_tokens)
    return [
        tokens * token + window
        for tokens, window in zip(seen, window_series(plan, target, seen), strict=True)
    ]


def window_series(plan: LanePlan, target: Target, seen: range) -> list[int]:
    """What sliding windows hold of so many tokens; layers that are alike are looked at once."""
    alike = Counter(
        (plan.shape.most_held(index, layer), plan.shape.slot_bytes(layer, target.dtype_bytes))
        for index, layer in enumerate(target.shape.geometry.layers)
        if layer.kind == "window"
    )
    return [sum(count * min(tokens, most) * each for (most, each), count in alike.items()) for tokens in seen]


def changed(settings: LoadedProfile, output: int | None = None, **decode: Any) -> LoadedProfile:
    """The same profile with another output length, or other keys of `decode`, as if they had been typed."""
    profile = settings.profile
    if decode:
        merged = DecodeSettings.model_validate({**profile.decode.model_dump(), **decode})
        profile = profile.model_copy(update={"decode": merged})
    typed = settings.typed
    if output is not None:
        sampling = profile.sampling.model_copy(update={"max_new_tokens": output})
        profile, typed = (
            profile.model_copy(update={"sampling": sampling}),
            typed | {"sampling.max_new_tokens"},
        )
    return replace(settings, profile=profile, typed=typed)


def full_cache(settings: LoadedProfile) -> LoadedProfile:
    """The same run with nothing evicted, and slots as the model computes them."""
    full = changed(
        settings, strategy="full", interval="auto", protect_prompt=True, total_budget=None, sinks=0
    )
    return replace(full, profile=full.profile.model_copy(update={"cache": CacheSettings(kv="plain")}))


@dataclass(frozen=True)
class Limits:
    """The most that fits a memory, everything else as it is; 0 where not even one does."""

    prompt_tokens: int
    budget: int | None  # None: there is nothing to choose, the strategy never evicts
    budget_is_output: bool  # with that budget nothing is ever evicted
    lanes: int
    output_tokens: int

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def limits(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int, memory: int) -> Limits:
    def fits(one: LoadedProfile, prompt: int = prompt_tokens, many: int = lanes) -> bool:
        try:
            return total_bytes(one, target, prompt, many) <= memory
        except UsageError:  # beyond the model's context
            return False

    output = plan_of(settings, target.shape, prompt_tokens, 1).max_new_tokens
    settings = changed(settings, output)
    budget = largest_budget(settings, target, prompt_tokens, lanes, memory)
    context = target.shape.geometry.context
    lane_bytes = footprint(settings, target, prompt_tokens).lane_bytes
    return Limits(
        prompt_tokens=largest(lambda tokens: fits(settings, prompt=tokens), context - output),
        budget=budget,
        budget_is_output=budget is not None and budget >= output,
        lanes=largest(lambda many: fits(settings, many=many), max(1, memory // max(1, lane_bytes) + 1)),
        output_tokens=largest(lambda tokens: fits(changed(settings, tokens)), context - prompt_tokens),
    )


def worth(output: int) -> int:
    """The largest budget that is worth choosing: half of the output's tokens stay, half are forgotten."""
    return max(1, output // 2)


def largest_budget(
    settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int, memory: int,
    most: int | None = None,
) -> int | None:  # fmt: skip
    """At most `most`, or the output's length: from there on nothing is evicted. 0: none fits."""
    decode = settings.profile.decode
    if decode.strategy in ("full", "rpc") or decode.total_budget is not None:
        return None
    least = (decode.recent_tokens if decode.recent != "auto" else 1) + (
        "discontinuous" in (decode.strategy, decode.interval)
    )
    if most is None:
        most = plan_of(settings, target.shape, prompt_tokens, 1).max_new_tokens

    def fits(extra: int) -> bool:
        one = changed(settings, budget=least - 1 + extra)
        return total_bytes(one, target, prompt_tokens, lanes) <= memory

    found = largest(fits, max(1, most - least + 1))
    return least - 1 + found if found else 0


def total_bytes(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int) -> int:
    """`Footprint.total_bytes`, without the series over the output."""
    return RUNTIME_BYTES[target.device] + needs_of(settings, target, prompt_tokens, lanes).total


def largest(fits: Callable[[int], bool], most: int) -> int:
    """The largest number from 1 to `most` that fits, 0 where none does; if one fits, so do the smaller."""
    low, high = 0, max(0, most)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(middle) else (low, middle - 1)
    return low


def runs_out_at(settings: LoadedProfile, target: Target, prompt_tokens: int, lanes: int, memory: int) -> int:
    """The last output token for which a cache that keeps everything has room, whatever the model's context.

    -1 where not even the prompt has. Such a cache grows with every token; sliding windows are full by then.
    """
    start, geometry, dtype_bytes = changed(full_cache(settings), 1), target.shape.geometry, target.dtype_bytes
    needed = total_bytes(start, target, prompt_tokens, lanes)
    if needed > memory:
        return -1
    shape = plan_of(start, target.shape, prompt_tokens, lanes).shape
    room = memory - needed + shape.cache_bytes(geometry, dtype_bytes)
    token = lanes * sum(layer.slot_bytes(dtype_bytes) for layer in geometry.layers if layer.kind == "full")
    if not token:
        return geometry.context

    def fits(more: int) -> bool:
        longer = replace(shape, context=geometry.context, evictable=shape.evictable + more)
        return longer.cache_bytes(geometry, dtype_bytes) <= room

    return 1 + largest(fits, room // token)
