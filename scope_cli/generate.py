"""One prompt's walk through the model, events out; read this file first."""

import platform
from collections.abc import Callable, Iterator
from time import perf_counter

import torch
import transformers

import scope_cli
from scope_cli import plugins
from scope_cli.cache import ScopeCache
from scope_cli.decode import Lane, decode
from scope_cli.events import Event, Finished, PromptRead, Started
from scope_cli.geometry import Geometry
from scope_cli.memory import PeakMeter
from scope_cli.model import LoadedModel, rope_frequencies
from scope_cli.plan import RunPlan, plan_run
from scope_cli.prefill import read_prompt
from scope_cli.profile import DecodeSettings, LoadedProfile, Profile
from scope_cli.sampling import Sampler
from scope_cli.scorers.base import Policy
from scope_cli.text import TextStream


def generate(
    loaded: LoadedModel,
    profile: Profile,
    prompt_ids: list[int],
    plan: RunPlan,
    interrupted: Callable[[], bool] = lambda: False,
    made: Callable[[ScopeCache], None] = lambda cache: None,
) -> Iterator[Event]:
    """Read the prompt, write the output; the caller decides where the events go.

    `interrupted` is asked between chunks and between tokens; once it says yes, the run ends as `interrupted`
    with everything that was written so far. `made` is shown the cache, for those who watch it.
    """
    yield Started(
        lanes=1,
        prompt_tokens=(plan.prompt_tokens,),
        max_new_tokens=plan.max_new_tokens,
        policy=policy_in_words(profile, plan),
        profile=profile.as_dict(),
        model=loaded.opened.describe(),
        versions=versions(),
        notes=plan.notes,
    )
    with PeakMeter(loaded.device) as peak:
        cache = new_cache(loaded, profile, plan)
        made(cache)
        began = perf_counter()
        prompt = torch.tensor([prompt_ids], device=loaded.device)
        logits = yield from read_prompt(
            loaded.model,
            cache,
            prompt,
            plan.schedule,
            plan=plan.prompt,
            seed=profile.sampling.seed,
            chunk=profile.prefill.chunk,
            interrupted=interrupted,
        )
        read, prefill_peak = perf_counter(), peak.lap()
        lane = None
        if logits is not None:
            yield PromptRead(0, plan.prompt_tokens, read - began, prefill_peak, cache.reading())
            lane = new_lane(loaded, profile, plan, prompt, logits)
            yield from decode(loaded.model, cache, [lane], interrupted)
        rest = lane.text.flush() if lane else ""  # may complete a stop text
        stopped_by = lane.text.stopped if lane else None
        yield Finished(
            lane=0,
            reason="stop" if stopped_by else (lane.reason if lane else None) or "interrupted",
            text=rest,
            prompt_tokens=plan.prompt_tokens,
            output_tokens=lane.written if lane else 0,
            prefill_s=read - began,
            decode_s=perf_counter() - read,
            prefill_peak_bytes=prefill_peak,
            decode_peak_bytes=peak.lap(),
            reading=cache.reading(),
            audit=cache.audit(),
            loop=lane.loop if lane else None,
            stopped_by=stopped_by,
        )


def make_plan(settings: LoadedProfile, geometry: Geometry, prompt_tokens: int, ring: int = 1) -> RunPlan:
    """The plan of a run; the cache remembers what the scorer asks for, `ring` queries at least."""
    scorer = policy_of(settings.profile.decode).scorer
    ring = max(ring, scorer.ring)
    return plan_run(settings, geometry, prompt_tokens, ring=ring, memos=len(scorer.memos))


def new_cache(loaded: LoadedModel, profile: Profile, plan: RunPlan) -> ScopeCache:
    return ScopeCache(
        loaded.geometry,
        plan.starting_shape,
        policy_of(profile.decode),
        inv_freq=rope_frequencies(loaded.model),
        dtype=loaded.dtype,
        device=loaded.device,
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


def new_lane(
    loaded: LoadedModel, profile: Profile, plan: RunPlan, prompt: torch.Tensor, logits: torch.Tensor
) -> Lane:
    """A lane whose prompt, [1, prompt_tokens], has been read; logits: [1, vocab], of its last token."""
    sampling = profile.sampling
    return Lane(
        prompt_ids=prompt,
        logits=logits,
        sampler=Sampler(sampling, prompt.shape[1], loaded.eos_ids, loaded.device),
        text=TextStream(loaded.tokenizer, prompt[0].tolist(), sampling.stop),
        eos_ids=frozenset() if sampling.ignore_eos else frozenset(loaded.eos_ids),
        max_new_tokens=plan.max_new_tokens,
        stop_on_loop=sampling.stop_on_loop,
        at_the_end="context" if plan.ends_with_context else "length",
    )


def policy_in_words(profile: Profile, plan: RunPlan) -> str:
    decode, schedule = profile.decode, plan.schedule
    kept = kept_in_words(profile, plan)
    if decode.strategy == "full":
        return f"full: nothing is evicted{kept}"
    what = f"total budget {decode.total_budget}" if decode.total_budget else f"budget {decode.budget}"
    if decode.strategy == "rpc":
        what = f"one token in {decode.ratio}"
    prompt = "" if decode.protect_prompt else f", prompt not protected ({decode.sinks} sinks)"
    interval = schedule.interval
    if decode.strategy != "rpc":
        interval = min(interval, decode.budget - schedule.recent + 1)  # what the budget leaves room for
    every = "every token" if interval == 1 else f"every {interval} tokens"
    scorer = f"scorer {decode.scorer.name}"
    return f"{decode.strategy}, {what} ({schedule.recent} recent), {every}, {scorer}{prompt}{kept}"


def kept_in_words(profile: Profile, plan: RunPlan) -> str:
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
    return f", prompt {names}: {round(sum(kept) / len(kept))} of {prompt.prompt_tokens} tokens"


def versions() -> dict[str, str]:
    return {
        "scope": scope_cli.__version__,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "transformers": transformers.__version__,
    }
