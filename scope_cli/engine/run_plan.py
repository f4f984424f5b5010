"""Everything of a run that is known before a weight is read: sizes, bytes, words. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scope_cli.cache.shape import CacheShape
from scope_cli.engine.fit import Needs, check, needs
from scope_cli.engine.plan import LanePlan, plan_run, shared_shape
from scope_cli.geometry import Geometry
from scope_cli.machine import memory
from scope_cli.models.choices import compiles
from scope_cli.models.target import Target
from scope_cli.policies import plugins
from scope_cli.policies.policy import Policy
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schema import Profile

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel


@dataclass(frozen=True)
class RunPlan:
    """Prompts that share a cache; whoever runs or measures them starts from here."""

    profile: Profile
    prompts: tuple[LanePlan, ...]
    shape: CacheShape  # of the cache: its lanes run side by side, and a finished one takes the next prompt
    compiled: bool  # the decode step, first

    @classmethod
    def of(
        cls,
        profile: Profile,
        prompts: Sequence[LanePlan],
        device: str,
        lanes: int | None = None,
        shape: CacheShape | None = None,
    ) -> RunPlan:
        """device: its kind; lanes: one for each prompt where none are given; shape: where it is settled.

        Raises UsageError where the prompts cannot share a cache.
        """
        shape = shape or shared_shape(prompts, lanes or len(prompts))
        steps = sum(plan.max_new_tokens for plan in prompts) // shape.lanes
        return cls(profile, tuple(prompts), shape, compiles(profile.model.compile, device, steps))

    @property
    def steps(self) -> int:
        """Of the decode loop, at most, where no lane is ever idle."""
        return sum(plan.max_new_tokens for plan in self.prompts) // self.shape.lanes

    @property
    def policy(self) -> str:
        return policy_in_words(self.profile, self.prompts[0])

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before it begins."""
        notes = [note for plan in self.prompts for note in plan.notes]
        if self.compiled:
            notes.append(f"compiling the decode step first: {self.steps:,} steps are planned")
        elif self.profile.model.compile == "on":
            notes.append("model.compile=on has no effect: a step is compiled on a GPU alone")
        return tuple(notes)

    def needs(self, target: Target) -> Needs:
        """Its bytes, on that device and with those weights."""
        return needs(target, self.prompts, self.shape.lanes, self.profile.prefill.chunk)

    def check_fits(self, opened: OpenedModel, loaded: bool = False) -> None:
        """Raises ModelError where it does not fit what is free; loaded: the weights are there."""
        needed, free = self.needs(opened.target), memory.free_bytes(opened.device)
        if loaded:
            needed = replace(needed, weights=0, loading=0)
        check(opened.target, needed, self.shape.lanes, free, str(opened.device))


def make_plan(settings: LoadedProfile, geometry: Geometry, prompt_tokens: int, ring: int = 1) -> LanePlan:
    """The plan of a run; the cache remembers what the scorer asks for, `ring` queries at least."""
    policy = policy_of(settings.profile.decode)
    scorer = policy.scorer
    scorer.check(geometry)
    ring, by_attention = max(ring, scorer.ring), scorer.takes_attention and policy.together
    return plan_run(
        settings, geometry, prompt_tokens, ring=ring, memos=len(scorer.memos), by_attention=by_attention
    )


def policy_of(decode: DecodeSettings) -> Policy:
    return Policy(
        scorer=plugins.build("scorers", decode.scorer.name, decode.scorer.options),
        protect_prompt=decode.protect_prompt,
        sinks=decode.sinks,
        share=decode.share,
        weigh=decode.weigh,
        reserve_values=decode.reserve_values,
    )


def policy_in_words(profile: Profile, plan: LanePlan) -> str:
    decode, schedule = profile.decode, plan.schedule
    kept = kept_in_words(profile, plan) + slots_in_words(plan.shape)
    if decode.strategy == "full":
        return f"full: nothing is evicted{kept}"
    what = f"total budget {decode.total_budget}" if decode.total_budget else f"budget {decode.budget}"
    if decode.strategy == "rpc":
        what = f"one token in {decode.ratio}"
    prompt = "" if decode.protect_prompt else f", prompt not protected ({decode.sinks} sinks)"
    interval = schedule.interval
    if decode.strategy != "rpc":
        interval = min(interval, schedule.room + 1)  # what the budget leaves room for
    every = "every token" if interval == 1 else f"every {interval} tokens"
    scorer = f"scorer {decode.scorer.name}"
    return f"{decode.strategy}, {what} ({schedule.recent} recent), {every}, {scorer}{prompt}{kept}"


def slots_in_words(shape: CacheShape) -> str:
    """In which formats slots lie, where they are not plain."""
    exact = f" (the newest {shape.exact} exact)" if shape.exact else ""
    return f", slots {shape.form}{exact}" if shape.form.packs else ""


def kept_in_words(profile: Profile, plan: LanePlan) -> str:
    """What is done to the prompt, where anything is."""
    prefill, prompt = profile.prefill, plan.prompt
    if prefill.method.name == "full" and not prefill.wrap:
        return ""
    names = " with ".join([prefill.method.name, *(wrapper.name for wrapper in prefill.wrap)])
    if not prompt.staged:
        return f", prompt {names}: kept whole"
    if any(wrapper.finds_budget for wrapper in prompt.wrappers):
        return f", prompt {names}: as much as it takes"
    kept = [tokens for tokens in prompt.kept if tokens]
    return f", prompt {names}: {round(sum(kept) / len(kept)):,} of {prompt.prompt_tokens:,} tokens"
