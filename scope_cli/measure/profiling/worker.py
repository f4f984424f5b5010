"""A job as JSON on standard input, one measured run in this process, JSON lines on standard output.

Every run has a process of its own, so that peaks do not mix. A line is {"progress": ..., "part": ...},
{"result": ...} or {"error": ..., "hint": ..., "exit_code": ...}.
"""

from __future__ import annotations

import gc
import itertools
import json
import os
import random
import signal
import sys
from dataclasses import dataclass
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scope_cli.console.safe import as_json
from scope_cli.engine import fit
from scope_cli.errors import ScopeError
from scope_cli.machine import memory
from scope_cli.machine.description import machine
from scope_cli.measure.profiling.footprint import changed, footprint, needs_of, runs_out_at
from scope_cli.measure.profiling.result import UNWRITTEN

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache
    from scope_cli.engine.plan import LanePlan
    from scope_cli.events import Event
    from scope_cli.measure.profiling.result import Result
    from scope_cli.models.model import LoadedModel, OpenedModel
    from scope_cli.settings.load import LoadedProfile
    from scope_cli.settings.schema import Profile

STRETCHES = 100  # of the output, for the speed and for the cache's bytes
MAP_TIMES = 48
PROMPT_BINS, OUTPUT_BINS = 64, 96  # of a memory map
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

    memory.return_freed_memory()
    job = Job(**json.loads(sys.stdin.read()))
    try:
        result = measure(job, tell)
    except ScopeError as error:
        tell(error=str(error), hint=error.hint, exit_code=error.exit_code)
    else:
        tell(result=result.as_dict())


def measure(job: Job, tell: Any) -> Result:
    from scope_cli.engine.plan import shared_shape
    from scope_cli.engine.run import Run, new_work
    from scope_cli.machine.memory import PeakMeter
    from scope_cli.models.model import open_model
    from scope_cli.settings.load import LoadedProfile
    from scope_cli.settings.schema import Profile

    settings = LoadedProfile(Profile.model_validate(job.profile), job.source, frozenset(job.typed))
    opened = open_model(settings.profile.model, job.offline, lambda line: tell(progress=line))
    prompt_ids = ids_of(job, opened, settings)
    work = new_work(settings, opened.geometry, prompt_ids)
    plan = work.plan
    target = opened.target
    planned = footprint(settings, target, plan.prompt_tokens)
    free = memory.free_bytes(opened.device)
    fit.check(target, needs_of(settings, target, plan.prompt_tokens), 1, free, str(opened.device))
    full = {
        "free_bytes": free,
        "full_runs_out_at": runs_out_at(settings, target, plan.prompt_tokens, 1, free),
        "room_for_output": opened.geometry.context - plan.prompt_tokens,
    }
    tell(progress=f"{job.label}: loading {opened.name}")
    loaded = opened.load()
    warm_up(loaded, settings, prompt_ids)
    watch = Watch(loaded, settings.profile, plan)
    with PeakMeter(loaded.device) as peak:
        watch.begin()
        run = Run(loaded, settings.profile, shared_shape([plan], 1), peak)
        watch.made(run.cache)
        for event in run.run([work]):
            watch.receive(event, lambda line, part: tell(progress=f"{job.label}: {line}", part=part))
    return watch.result(job, {**planned.as_dict(), **full})


def compile_note(profile: Profile, plan: LanePlan, device: Any) -> list[str]:
    """Where a run of this length would be compiled, its speed is not the one that was measured."""
    from scope_cli.engine.step import compiles

    if not compiles(profile.model.compile, device, plan.max_new_tokens):
        return []
    return [
        "the step was measured uncompiled; scope generate compiles it for an output of "
        f"{plan.max_new_tokens:,} tokens, and its speed is another then (scope bench measures it)"
    ]


def ids_of(job: Job, opened: OpenedModel, settings: LoadedProfile) -> list[int]:
    """The prompt's ids; a synthetic one is drawn at random, always the same."""
    if job.prompt is not None:
        return opened.encode(job.prompt, settings.profile.prompt)
    return random.Random(0).choices(range(opened.geometry.vocab), k=job.prompt_tokens)


def warm_up(loaded: LoadedModel, settings: LoadedProfile, prompt_ids: list[int]) -> None:
    """One chunk, a few tokens, some evictions: what libraries load and keep belongs to the baseline."""
    from scope_cli.engine.run import generate, new_work

    decode = settings.profile.decode
    small: dict[str, Any] = {"budget": WARM_TOKENS // 2, "recent": 1}
    if decode.interval != "discontinuous" and decode.strategy != "discontinuous":
        small["interval"] = 1
    if decode.total_budget is not None:
        small["total_budget"] = decode.sinks + 2
    short = changed(settings, WARM_TOKENS, **small)
    chunk = min(settings.profile.prefill.chunk, loaded.geometry.context - WARM_TOKENS)
    ids = prompt_ids[:chunk]
    for _ in generate(loaded, short.profile, [new_work(short, loaded.geometry, ids)]):
        pass


class Watch:
    """Everything that is noted of a run while it goes on; all room for it is taken before the baseline."""

    def __init__(self, loaded: LoadedModel, profile: Profile, plan: LanePlan) -> None:
        import numpy as np

        self.loaded, self.profile, self.plan, self.device = loaded, profile, plan, loaded.device
        tokens = plan.max_new_tokens
        self.elapsed = np.ones(tokens)  # seconds of decoding when token n was there
        self.read = np.ones(tokens, dtype=np.int64)
        self.held = np.ones(tokens, dtype=np.int64)
        self.full = np.ones(tokens, dtype=np.int64)
        self.governed = [i for i, layer in enumerate(loaded.geometry.layers) if layer.kind == "full"]
        self.edges = edges_of(0, plan.prompt_tokens, PROMPT_BINS)[:-1]
        self.edges += edges_of(plan.prompt_tokens, tokens, OUTPUT_BINS)
        self.times = sorted({1 + round(i * (tokens - 1) / (MAP_TIMES - 1)) for i in range(MAP_TIMES)})
        shape = (len(self.times), len(self.governed), len(self.edges) - 1)
        self.map = np.full(shape, UNWRITTEN, dtype=np.uint8)
        self.seen_times = 0
        self.own_s = 0.0  # spent here, and no part of the run
        self.written = 0
        self.timer = Timer(loaded)
        self.prefill_peak = self.decode_peak = 0
        self.cache: ScopeCache | None = None

    def begin(self) -> None:
        gc.collect()
        memory.release_freed()
        self.filled = memory.fill_holes()
        self.gauge = memory.gauge(self.device)
        self.baseline = self.gauge.now()
        self.mapped = memory.mapped_bytes() if isinstance(self.gauge, memory.ProcessGauge) else 0
        self.gauge.reset()

    def made(self, cache: ScopeCache) -> None:
        self.cache = cache
        self.timer.watch(cache)

    def receive(self, event: Event, say: Any) -> None:
        from scope_cli.events import Finished, PromptProgress, PromptRead, Token

        since = perf_counter()
        match event:
            case PromptProgress():
                memory.release_freed()
                say(f"prompt {event.read:,} of {event.prompt_tokens:,} tokens", 0.0)
            case PromptRead():
                self.prefill_peak = self.gauge.peak() - self.baseline
                memory.release_freed()
                self.gauge.reset()
                self.prompt_read, self.after_prompt = event, event.reading
                self.timer.start_decode()
            case Token():
                self._token(event)
                if event.n % 64 == 0:
                    most = self.plan.max_new_tokens
                    say(f"output {event.n:,} of {most:,} tokens", event.n / most)
            case Finished():
                self.finished = event
        self.own_s += perf_counter() - since

    def _token(self, event: Any) -> None:
        at = event.n - 1
        self.elapsed[at] = event.elapsed_s - (self.own_s - self.timer.own_at_start(self.own_s))
        self.held[at], self.full[at] = event.reading.held_bytes, event.reading.full_bytes
        self.read[at] = event.reading.read_bytes
        self.written = event.n
        if self.seen_times < len(self.times) and event.n == self.times[self.seen_times]:
            self._look(event.n)
        self.decode_peak = self.gauge.peak() - self.baseline

    def _look(self, n: int) -> None:
        """Which positions are held now: the share of KV heads, averaged over the positions of a bin."""
        import numpy as np

        assert self.cache is not None
        seen = self.plan.prompt_tokens + n - 1  # the newest token has not been written yet
        edges = np.array(self.edges)
        sizes = np.maximum(1, np.minimum(edges[1:], seen) - edges[:-1])
        for row, index in enumerate(self.governed):
            held = self.cache.layers[index].positions[0]  # [kv_heads, slots]
            flat = held.flatten().cpu().numpy()
            count, _ = np.histogram(flat[flat >= 0], edges)
            share = np.rint(100 * count / (sizes * held.shape[0]))
            share[edges[:-1] >= seen] = UNWRITTEN
            self.map[self.seen_times, row] = share
        self.seen_times += 1

    def result(self, job: Job, planned: dict[str, Any]) -> Result:
        from scope_cli.engine.run import policy_in_words, versions
        from scope_cli.measure.profiling.result import (
            KV,
            MemoryMap,
            Peaks,
            Result,
            Series,
            Speed,
            Transfer,
            packed,
        )

        self.gauge.close()
        end, written = self.finished, self.written
        reading, after = end.reading, self.after_prompt
        held, full, elapsed = self.held[:written], self.full[:written], self.elapsed[:written]
        per_1000 = 1000 / written
        at = sorted({max(1, round(i * written / STRETCHES)) for i in range(1, STRETCHES + 1)})
        speed = [
            ((now - before) / max(1e-9, elapsed[now - 1] - elapsed[before - 1]))
            for before, now in itertools.pairwise(at)
        ]
        decode_s = float(elapsed[-1])
        shares = self.timer.shares(end.prefill_s, decode_s)
        memory_map = None
        if self.governed:
            memory_map = MemoryMap(
                n=self.times[: self.seen_times],
                layers=self.governed,
                edges=self.edges,
                prompt_tokens=self.plan.prompt_tokens,
                packed=packed(self.map[: self.seen_times]),
            )
        return Result(
            label=job.label,
            policy=policy_in_words(self.profile, self.plan),
            prompt_tokens=self.plan.prompt_tokens,
            output_tokens=written,
            model=self.loaded.opened.describe(),
            machine=machine(self.device),
            versions=versions(),
            profile=self.profile.as_dict(),
            plan=planned,
            peaks=Peaks(
                self.baseline + self.mapped,
                self.prefill_peak,
                self.decode_peak,
                self.gauge.how,
                self.mapped,
            ),
            kv=KV(
                allocated_bytes=reading.allocated_bytes,
                overhead_bytes=reading.overhead_bytes,
                held_peak_bytes=int(held.max()),
                held_mean_bytes=float(held.mean()),
                held_end_bytes=int(held[-1]),
                full_end_bytes=int(full[-1]),
                full_mean_bytes=float(full.mean()),
            ),
            transfer=Transfer(
                read_bytes=float(self.read[:written].sum()) * per_1000,
                moved_bytes=(reading.moved_bytes - after.moved_bytes) * per_1000,
                reference_moved_bytes=(reading.reference_moved_bytes - after.reference_moved_bytes)
                * per_1000,
                host_bytes=reading.host_bytes,
                evictions=reading.evictions,
                evicted_tokens=reading.evicted_tokens,
            ),
            speed=Speed(
                prefill_tokens_per_s=end.prompt_tokens / end.prefill_s,
                decode_tokens_per_s=(written - 1) / max(1e-9, decode_s - float(elapsed[0]))
                if written > 1
                else 0.0,
                positions=at[1:],
                tokens_per_s=[float(one) for one in speed],
            ),
            time=shares,
            series=Series(
                n=at,
                held_bytes=[int(held[n - 1]) for n in at],
                full_bytes=[int(full[n - 1]) for n in at],
            ),
            map=memory_map,
            audit=list(end.audit.problems),
            notes=[
                *self.plan.notes,
                *compile_note(self.profile, self.plan, self.device),
            ],
            measured_at=datetime.now().astimezone().isoformat(timespec="seconds"),
            command=list(job.command),
        )


def edges_of(start: int, tokens: int, bins: int) -> list[int]:
    """Where `bins` stretches of equal length begin, and the end."""
    bins = min(bins, tokens)
    return [start + i * tokens // bins for i in range(bins + 1)]


class Timer:
    """Seconds inside attention and inside the end of a step, where evictions happen.

    On a CPU a clock around both functions, at every step. A GPU works on its own time: there every 16th step
    waits for it before and after, and the shares of these steps are taken for all.
    """

    EVERY = 16

    def __init__(self, loaded: LoadedModel) -> None:
        from scope_cli.models.attention import ATTENTION, attend
        from scope_cli.models.lean import AttentionInterface

        self.waits = loaded.device.type != "cpu"
        self.device = loaded.device
        self.spent = {"attention": 0.0, "eviction": 0.0, "step": 0.0}
        self.steps = 0
        self.decoding = False
        self.started_at = 0.0
        self.own: float | None = None
        AttentionInterface.register(ATTENTION, self._timed("attention", attend))

    def watch(self, cache: ScopeCache) -> None:
        cache.watched = self._timed("eviction", lambda end_step: end_step())

    def start_decode(self) -> None:
        self.decoding = True
        self.step_began = perf_counter()

    def own_at_start(self, own_s: float) -> float:
        """What had been spent on watching when decoding began."""
        if self.own is None:
            self.own = own_s
        return self.own

    def _timed(self, what: str, function: Any) -> Any:
        def timed(*args: Any, **options: Any) -> Any:
            if not self.decoding or (self.waits and self.steps % self.EVERY):
                if what == "eviction" and self.decoding:
                    self.steps += 1
                    if self.waits and self.steps % self.EVERY == 0:
                        self._wait()
                        self.step_began = perf_counter()
                return function(*args, **options)
            if self.waits:
                self._wait()
            since = perf_counter()
            try:
                return function(*args, **options)
            finally:
                if self.waits:
                    self._wait()
                now = perf_counter()
                self.spent[what] += now - since
                if what == "eviction":
                    self.steps += 1
                    self.spent["step"] += now - self.step_began
                    self.step_began = now

        return timed

    def _wait(self) -> None:
        import torch

        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        elif self.device.type == "mps":
            torch.mps.synchronize()

    def shares(self, prefill_s: float, decode_s: float) -> Any:
        from scope_cli.measure.profiling.result import Time

        scale = decode_s / self.spent["step"] if self.waits and self.spent["step"] else 1.0
        attention, eviction = self.spent["attention"] * scale, self.spent["eviction"] * scale
        how = f"every {self.EVERY}th step, device synchronised" if self.waits else "a clock at every step"
        return Time(prefill_s, decode_s, attention, eviction, max(0.0, decode_s - attention - eviction), how)


if __name__ == "__main__":
    main()
