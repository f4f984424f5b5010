"""A job as JSON on standard input, one measured run in this process, JSON lines on standard output.

Every run has a process of its own, so that peaks do not mix. A line is {"progress": ..., "part": ...},
{"result": ...} or {"error": ..., "hint": ..., "exit_code": ...}.
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from scope_cli.console.safe import as_json
from scope_cli.engine import fit
from scope_cli.errors import ScopeError
from scope_cli.machine import heap, memory
from scope_cli.measure.profiling.footprint import changed, footprint, needs_of, runs_out_at

if TYPE_CHECKING:
    from scope_cli.measure.profiling.result import Result
    from scope_cli.models.model import LoadedModel, OpenedModel
    from scope_cli.settings.load import LoadedProfile

WARM_TOKENS = 8


@dataclass(frozen=True)
class Job:
    """What the parent asks for."""

    label: str
    profile: dict[str, Any]
    source: str
    typed: list[str]
    prompt: str | None  # a text; else a synthetic prompt of
    prompt_tokens: int
    offline: bool
    command: tuple[str, ...] = ()  # as it was typed


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent hears it, and ends us
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # whatever a library prints does not get between

    def tell(**line: Any) -> None:
        print(as_json(line), file=out, flush=True)

    heap.return_freed_memory()
    job = Job(**json.loads(sys.stdin.read()))
    try:
        result = measure(job, tell)
    except ScopeError as error:
        tell(error=str(error), hint=error.hint, exit_code=error.exit_code)
    else:
        tell(result=result.as_dict())


def measure(job: Job, tell: Any) -> Result:
    from scope_cli.engine.run import Run, new_work
    from scope_cli.engine.run_plan import RunPlan
    from scope_cli.engine.slots_check import computed, slots_of
    from scope_cli.measure.profiling.watch import Watch
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
    watch = Watch(loaded, settings.profile, plan)
    watch.begin()
    plain = replace(RunPlan.of(settings.profile, [plan], opened.device.type), compiled=False)
    with Run.of(plain, loaded) as run:
        watch.made(run)
        for event in run.run([work]):
            watch.receive(event, lambda line, part: tell(progress=f"{job.label}: {line}", part=part))
    return watch.result(job.label, job.command, {**planned.as_dict(), **full})


def ids_of(job: Job, opened: OpenedModel, settings: LoadedProfile) -> list[int]:
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
    main()
