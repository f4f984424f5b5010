"""A job in, one measured run in this process, its result out, as `measure.child` has it.

Every run has a process of its own, so that peaks do not mix.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scope_cli.engine import fit
from scope_cli.errors import ScopeError
from scope_cli.machine import heap, memory
from scope_cli.machine.setup import wait_briefly
from scope_cli.measure.child import serve
from scope_cli.measure.profiling.footprint import changed, footprint, needs_of, runs_out_at

if TYPE_CHECKING:
    from scope_cli.measure.profiling.result import Result
    from scope_cli.models.model import LoadedModel, OpenedModel
    from scope_cli.settings.load import LoadedProfile

WARM_TOKENS = 8


@dataclass(frozen=True)
class Measurement:
    """What the parent asks for."""

    label: str
    profile: dict[str, Any]
    source: str
    typed: list[str]
    prompt: str | None  # a text; else a synthetic prompt of
    prompt_tokens: int
    offline: bool
    command: tuple[str, ...] = ()  # as it was typed


def answer(request: dict[str, Any], tell: Any) -> dict[str, Any]:
    """{"result": ...}, and on the way {"progress": ..., "part": ...}."""
    heap.return_freed_memory()
    return {"result": measure(Measurement(**request), tell).as_dict()}


def measure(job: Measurement, tell: Any) -> Result:
    from scope_cli.engine.run import Run, new_work
    from scope_cli.engine.run_plan import RunPlan
    from scope_cli.engine.slots_check import computed, slots_of
    from scope_cli.measure.profiling.watch import Recorder
    from scope_cli.models.model import open_model
    from scope_cli.settings.load import LoadedProfile
    from scope_cli.settings.schema import Profile

    settings = LoadedProfile(Profile.model_validate(job.profile), job.source, frozenset(job.typed))
    opened = open_model(settings.profile.model, job.offline, lambda line: tell(progress=line))
    prompt_ids, target = ids_of(job, opened, settings), opened.target
    tokens, free = len(prompt_ids), memory.free_bytes(opened.device)
    fit.check(
        target, needs_of(computed(opened).foreseen(settings), target, tokens), 1, free, str(opened.device)
    )
    tell(progress=f"{job.label}: loading {opened.name}")
    loaded = opened.load()
    settings, why = slots_of(loaded, settings)
    if why:
        tell(progress=f"{job.label}: {why}")
    work = new_work(settings, opened.geometry, prompt_ids)
    plan, planned = work.plan, footprint(settings, target, tokens)
    full = {
        "free_bytes": free,
        "full_runs_out_at": runs_out_at(settings, target, tokens, 1, free),
        "room_for_output": opened.geometry.context - tokens,
    }
    warm_up(loaded, settings, prompt_ids)
    watch = Recorder(loaded, settings.profile, plan)
    watch.begin()
    plain = replace(RunPlan.of(settings.profile, [plan], opened.device.type), compiled=False)
    with Run.of(plain, loaded) as run:
        watch.made(run)
        for event in run.run([work]):
            watch.receive(event, lambda line, part: tell(progress=f"{job.label}: {line}", part=part))
    return watch.result(job.label, job.command, {**planned.as_dict(), **full})


def ids_of(job: Measurement, opened: OpenedModel, settings: LoadedProfile) -> list[int]:
    """The prompt's ids; a synthetic one is drawn at random, always the same."""
    if job.prompt is not None:
        return opened.encode(job.prompt, settings.profile.prompt)
    return random.Random(0).choices(range(opened.geometry.vocab), k=job.prompt_tokens)


def warm_up(loaded: LoadedModel, settings: LoadedProfile, prompt_ids: list[int]) -> None:
    """A whole chunk, a few tokens, some evictions: what libraries load and keep belongs to the baseline."""
    from scope_cli.engine.run import generate, new_work

    decode = settings.profile.decode
    small: dict[str, Any] = {"budget": WARM_TOKENS // 2, "recent": 1}
    if decode.interval != "discontinuous" and decode.strategy != "discontinuous":
        small["interval"] = 1
    if decode.total_budget is not None:
        small["total_budget"] = decode.sinks + 2
    short = changed(settings, WARM_TOKENS, **small)
    ids = prompt_ids[: min(2 * settings.profile.prefill.chunk, loaded.geometry.context - WARM_TOKENS)]
    for _ in generate(loaded, short.profile, [new_work(short, loaded.geometry, ids)]):
        pass


if __name__ == "__main__":
    wait_briefly()
    serve(answer, ScopeError)
