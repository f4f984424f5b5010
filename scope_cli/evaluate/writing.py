"""Prompts in, their outputs under one profile out, several lanes at once: the one place that writes here."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from statistics import mean

import torch

from scope_cli.decode import Lane, decode
from scope_cli.errors import AuditError
from scope_cli.evaluate.fidelity import HeldBytes
from scope_cli.events import Reading
from scope_cli.generate import make_plan, new_cache, new_lane
from scope_cli.model import LoadedModel
from scope_cli.plan import RunPlan
from scope_cli.prefill import read_prompt, read_to_end
from scope_cli.profile import LoadedProfile, Profile


@dataclass(frozen=True)
class Written:
    """One prompt's output; bytes and evictions are averages over the lanes that ran together."""

    prompt: int  # its number
    ids: list[int]
    text: str
    reason: str
    bytes: HeldBytes
    evictions: float


def write_all(
    loaded: LoadedModel,
    settings: LoadedProfile,
    prompts: Mapping[int, list[int]],
    lanes: int = 4,
    interrupted: Callable[[], bool] = lambda: False,
) -> Iterator[Written]:
    """Every prompt's output, as soon as its group of lanes is through.

    prompts: number -> ids; a prompt samples with the profile's seed and its number added, whatever else runs
    """
    order = sorted(prompts, key=lambda number: len(prompts[number]))  # lanes form a rectangle
    plans = {number: make_plan(settings, loaded.geometry, len(prompts[number])) for number in order}
    if any(plan.prompt.late for plan in plans.values()):
        lanes = 1
    for start in range(0, len(order), lanes):
        if interrupted():
            return
        group = order[start : start + lanes]
        yield from _write_group(loaded, settings.profile, prompts, plans, group, interrupted)


@torch.no_grad()
def _write_group(
    loaded: LoadedModel,
    profile: Profile,
    prompts: Mapping[int, list[int]],
    plans: dict[int, RunPlan],
    group: list[int],
    interrupted: Callable[[], bool],
) -> Iterator[Written]:
    largest = plans[group[-1]]
    steps = max(plans[number].max_new_tokens for number in group)
    shape = replace(
        largest.starting_shape,
        lanes=len(group),
        evictable=max(plans[number].shape.evictable for number in group),
        context=max(len(prompts[number]) for number in group) + steps,
    )
    shape = replace(shape, ring=max(plans[number].shape.ring for number in group))
    cache = new_cache(loaded, profile, replace(largest, shape=shape))
    running: list[Lane] = []
    for lane, number in enumerate(group):
        plan, seed = plans[number], (profile.sampling.seed + number) % 2**63
        prompt = torch.tensor([prompts[number]], device=loaded.device)
        chunk = profile.prefill.chunk
        logits = read_to_end(
            read_prompt(
                loaded.model,
                cache,
                prompt,
                plan.schedule,
                plan=plan.prompt,
                lane=lane,
                seed=seed,
                chunk=chunk,
            )
        )
        sampling = profile.sampling.model_copy(update={"seed": seed})
        running.append(
            new_lane(loaded, profile.model_copy(update={"sampling": sampling}), plan, prompt, logits)
        )
    ids: list[list[int]] = [[] for _ in group]
    texts: list[list[str]] = [[] for _ in group]
    readings: list[Reading] = []
    for token in decode(loaded.model, cache, running, interrupted):
        ids[token.lane].append(token.token_id)
        texts[token.lane].append(token.text)
        readings.append(token.reading)
    if not (audit := cache.audit()).passed:
        raise AuditError("the audit failed: " + "; ".join(audit.problems), "this is a bug in scope")
    lanes = len(group)
    held = HeldBytes(
        held_mean=mean(reading.held_bytes for reading in readings) / lanes,
        held_peak=round(max(reading.held_bytes for reading in readings) / lanes),
        full_mean=mean(reading.full_bytes for reading in readings) / lanes,
        full_peak=round(readings[-1].full_bytes / lanes),
        overhead=round(readings[-1].overhead_bytes / lanes),
        allocated=round(readings[-1].allocated_bytes / lanes),
    )
    evictions = cache.reading().evictions / lanes
    for lane, number in enumerate(group):
        yield Written(
            prompt=number,
            ids=ids[lane],
            text="".join(texts[lane]) + running[lane].text.flush(),
            reason="stop" if running[lane].text.stopped else running[lane].reason or "interrupted",
            bytes=held,
            evictions=evictions,
        )
