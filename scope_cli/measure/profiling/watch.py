"""A run's events in, its measured Result out."""

from __future__ import annotations

import gc
import itertools
from datetime import datetime
from time import perf_counter
from typing import TYPE_CHECKING, Any

from scope_cli.machine import gauge, heap
from scope_cli.machine.description import machine
from scope_cli.measure.profiling.result import UNWRITTEN
from scope_cli.measure.profiling.timer import Timer

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache
    from scope_cli.engine.plan import LanePlan
    from scope_cli.engine.run import Run
    from scope_cli.events import Event
    from scope_cli.measure.profiling.result import Result
    from scope_cli.models.model import LoadedModel
    from scope_cli.settings.schema import Profile

STRETCHES = 100  # of the output, for the speed and for the cache's bytes
MAP_TIMES = 48
PROMPT_BINS, OUTPUT_BINS = 64, 96  # of a memory map


class Recorder:
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
        self.on_card: gauge.OnCard | None = None
        self.cache: ScopeCache | None = None

    def begin(self) -> None:
        gc.collect()
        heap.release_freed()
        self.filled = heap.fill_holes()
        self.gauge = gauge.gauge_of(self.device)
        self.baseline = self.gauge.now()
        self.mapped = gauge.mapped_bytes() if isinstance(self.gauge, gauge.ProcessGauge) else 0
        self.gauge.reset()

    def made(self, run: Run) -> None:
        self.cache = run.cache
        self.timer.watch(run)

    def receive(self, event: Event, say: Any) -> None:
        from scope_cli.events import Finished, PromptProgress, PromptRead, Token

        since = perf_counter()
        match event:
            case PromptProgress():
                heap.release_freed()
                say(f"prompt {event.read:,} of {event.prompt_tokens:,} tokens", 0.0)
            case PromptRead():
                self.prefill_peak = self.gauge.peak() - self.baseline
                heap.release_freed()
                self.gauge.reset()
                self.after_prompt = event.reading
                self.timer.start_decode()
            case Token():
                self._token(event)
                if event.n % 64 == 0:
                    most = self.plan.max_new_tokens
                    say(f"output {event.n:,} of {most:,} tokens", event.n / most)
            case Finished():
                self.finished = event
                self.on_card = self.gauge.on_card()
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

    def result(self, label: str, command: tuple[str, ...], planned: dict[str, Any]) -> Result:
        from scope_cli.engine.facts import versions
        from scope_cli.engine.run_plan import policy_in_words
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
            label=label,
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
                self.on_card,
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
            command=list(command),
        )


def edges_of(start: int, tokens: int, bins: int) -> list[int]:
    """Where `bins` stretches of equal length begin, and the end."""
    bins = min(bins, tokens)
    return [start + i * tokens // bins for i in range(bins + 1)]


def compile_note(profile: Profile, plan: LanePlan, device: Any) -> list[str]:
    """Where a run of this length would be compiled, its speed is not the one that was measured."""
    from scope_cli.models.choices import compiles

    if not compiles(profile.model.compile, device.type, plan.max_new_tokens):
        return []
    return [
        "the step was measured uncompiled; scope generate compiles it for an output of "
        f"{plan.max_new_tokens:,} tokens, and its speed is another then (scope bench measures it)"
    ]
