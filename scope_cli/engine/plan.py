"""Profile, geometry and prompt length in; planned tokens, slots and bytes out: arithmetic alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scope_cli.cache.shape import CacheShape, PromptPlan
from scope_cli.errors import UsageError
from scope_cli.formats.base import SlotFormat
from scope_cli.geometry import Geometry
from scope_cli.policies import plugins
from scope_cli.policies.schedule import Schedule
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.policy import CacheSettings, PrefillSettings
from scope_cli.settings.schedules import nothing_to_choose, schedule_of
from scope_cli.settings.schema import Profile

if TYPE_CHECKING:
    from scope_cli.policies.prefills.base import Prefill
    from scope_cli.policies.wrappers.base import Wrapper


SNAPSHOTS = 2  # of a lane, in memory: what `sampling.on_loop=rollback` goes back to


@dataclass(frozen=True)
class LanePlan:
    prompt_tokens: int
    max_new_tokens: int
    ends_with_context: bool  # the planned length is what the model's context leaves, not what was asked for
    schedule: Schedule
    shape: CacheShape  # where the prompt decides (`prompt.late`), the largest that it can become
    prompt: PromptPlan
    notes: tuple[str, ...]
    snapshots: int = 0  # in memory, of each lane
    by_attention: bool = False  # the scorer looks at nothing but the newest attention, which a step may tell

    @property
    def starting_shape(self) -> CacheShape:
        """What is allocated before the prompt is read."""
        if not self.prompt.late:
            return self.shape
        return replace(self.shape, prompt_slots=(0,) * len(self.shape.prompt_slots))


def plan_run(
    loaded: LoadedProfile,
    geometry: Geometry,
    prompt_tokens: int,
    *,
    ring: int = 1,
    memos: int = 0,
    by_attention: bool = False,
) -> LanePlan:
    """Decide the output length and the shape of a cache of one lane; the scorer asks for the last three.

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
    form = packable(profile.cache, geometry)
    prompt = plan_prompt(profile.prefill, geometry, prompt_tokens)
    notes += prompt_notes(profile.prefill, prompt)
    kept = max(prompt.kept, default=0) if geometry.policy_layers else prompt_tokens
    schedule = schedule_of(profile.decode, planned, kept_prompt=kept)
    if profile.decode.strategy != "full" and not geometry.policy_layers:
        notes.append(
            "every layer of this model has a sliding window of its own: the strategy has nothing to govern"
        )
    elif (told := nothing_to_choose(profile.decode, planned, kept)) is not None:
        notes.append(told)
    most = prompt.kept
    for wrapper in prompt.wrappers if prompt.staged else ():
        most = tuple(wrapper.most(tokens, prompt_tokens) for tokens in most)
    return LanePlan(
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
            form=form,
            exact=exact_tokens(profile),
            beyond=beyond,
        ),
        prompt=prompt,
        notes=tuple(notes),
        snapshots=SNAPSHOTS if profile.sampling.on_loop == "rollback" else 0,
        by_attention=by_attention,
    )


def shared_shape(plans: Sequence[LanePlan], lanes: int) -> CacheShape:
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
        form=first.form,
        exact=min(plan.shape.exact for plan in plans),
        beyond=first.beyond,
    )


def packable(settings: CacheSettings, geometry: Geometry) -> SlotFormat:
    """In which formats the slots lie. Raises UsageError where this model's heads cannot be packed so."""
    for head_dim in {layer.head_dim for layer in geometry.layers}:
        if (problem := settings.form.problem(head_dim)) is not None:
            raise UsageError(
                f"cache.values is {settings.sides[1]}: {problem}", "--kv int8 packs heads of any width"
            )
    return settings.form


def exact_tokens(profile: Profile) -> int:
    """None of them may be evicted: where something is, no more than `recent`."""
    exact, decode = profile.cache.exact_tokens, profile.decode
    return exact if decode.strategy == "full" else min(exact, decode.recent_tokens)


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
