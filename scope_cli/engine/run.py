"""Prompts' walk through the model, events out; read this file first."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.shape import CacheShape
from scope_cli.engine.beginning import Beginnings
from scope_cli.engine.decode import Admission, Lane, decode, raise_again
from scope_cli.engine.facts import depends_on, slower, versions
from scope_cli.engine.lane import new_lane
from scope_cli.engine.plan import LanePlan
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import RunPlan, make_plan, policy_of
from scope_cli.engine.state import Keep, LaneState, go_on, state_of
from scope_cli.engine.step import Tell, new_step, told_of_compiling
from scope_cli.errors import ScopeError
from scope_cli.events import Event, Failed, Finished, PromptRead, Started
from scope_cli.geometry import Geometry
from scope_cli.machine.gauge import PeakMeter
from scope_cli.models.attention import attention_of
from scope_cli.models.model import LoadedModel
from scope_cli.models.skeleton import rope_frequencies
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import Profile, SamplingSettings


@dataclass(frozen=True)
class Work:
    """One prompt of a run, and how it is continued."""

    prompt_ids: list[int]
    plan: LanePlan  # its own, for one lane
    sampling: SamplingSettings
    seed: int  # of sampling, and of policies that draw
    max_seconds: float | None = None  # for writing
    notes: tuple[str, ...] = ()  # what the user should know of the prompt
    state: Callable[[], LaneState] | None = None  # reads where it goes on, in the place of its prompt


def generate(
    loaded: LoadedModel,
    profile: Profile,
    works: list[Work],
    shape: CacheShape | None = None,
    interrupted: Callable[[], bool] = lambda: False,
    tell: Tell = lambda line: None,
    each_alone: bool = False,
    busy: Tell = lambda what: None,
    keep: Keep | None = None,
) -> Iterator[Event]:
    """Read the prompts, write the outputs; the caller decides where the events go.

    shape: of the cache; its lanes run side by side, and a finished one takes the next prompt. One lane for
        each prompt where there is none.
    each_alone: a ScopeError of one prompt becomes `Failed` and the others go on; else it is raised
    `interrupted` is asked between chunks and between tokens; once it says yes, what runs ends as
    `interrupted` with everything that was written so far, and what waits is not begun.
    busy: told in the middle of a step what else takes its time, such as compiling
    keep: is given the lanes' states, as often as it wants them and where the run is interrupted
    """
    plan = RunPlan.of(profile, [work.plan for work in works], loaded.device.type, shape=shape)
    yield Started(
        lanes=plan.shape.lanes,
        prompt_tokens=tuple(prompt.prompt_tokens for prompt in plan.prompts),
        max_new_tokens=max(prompt.max_new_tokens for prompt in plan.prompts),
        policy=plan.policy,
        profile=profile.as_dict(),
        model=loaded.opened.describe(),
        versions=versions(),
        seeds=tuple(work.seed for work in works),
        notes=tuple(
            dict.fromkeys([*(note for work in works for note in work.notes), *plan.notes, *slower(loaded)])
        ),
        depends_on=depends_on(loaded, plan.shape.lanes, plan.compiled),
    )
    with Run.of(plan, loaded, tell, busy, keep) as run:
        yield from run.run(works, interrupted, run.failed if each_alone else raise_again)


class Run:
    """One cache, whose lanes take one prompt after the other."""

    def __init__(
        self,
        loaded: LoadedModel,
        profile: Profile,
        shape: CacheShape,
        peak: PeakMeter,
        compiled: bool = False,
        tell: Tell = lambda line: None,
        keep: Keep | None = None,
    ) -> None:
        self.loaded, self.profile, self.peak, self.keep = loaded, profile, peak, keep
        self.cache = new_cache(loaded, profile, shape)
        self.step = new_step(loaded.model, self.cache, compiled, tell, loaded.native)
        self._phases: dict[int, tuple[float, int]] = {}  # by number: when it began, peak bytes since
        self._prefill: dict[int, tuple[float, int]] = {}  # by number: seconds and peak bytes of reading
        self._read: dict[int, int] = {}  # by number: prompt tokens that were read for it
        self._newest: tuple[Work, Lane] | None = None  # the prompt that was read last
        self._beginnings = Beginnings(self.cache, profile.prefill.chunk)
        self._in_row: dict[int, int] = {}  # by row of the cache: the number of its prompt

    @classmethod
    @contextmanager
    def of(
        cls,
        plan: RunPlan,
        loaded: LoadedModel,
        tell: Tell = lambda line: None,
        busy: Tell = lambda what: None,
        keep: Keep | None = None,
    ) -> "Iterator[Run]":
        """As it was planned, with whoever watches memory and compiling meanwhile; see `generate`."""
        with PeakMeter(loaded.device) as peak, told_of_compiling(busy):
            yield cls(loaded, plan.profile, plan.shape, peak, plan.compiled, tell, keep)

    def run(
        self,
        works: Iterable[Work],
        interrupted: Callable[[], bool] = lambda: False,
        fail: Callable[[int, Exception], Event] = raise_again,
    ) -> Iterator[Event]:
        """`fail` makes an event of what went wrong with the prompt in a row; else it ends the run."""
        waiting = enumerate(works)

        def admit(row: int) -> Admission | None:
            number, work = next(waiting, (0, None))
            return None if work is None else self.read(work, number, row, interrupted)

        yield from decode(self.step, self.cache, admit, self.finish, interrupted, fail, between=self.between)

    def read(self, work: Work, number: int, row: int, interrupted: Callable[[], bool]) -> Admission:
        """Read a prompt into a row, or copy what other rows hold of it, all or its beginning; or go on."""
        prompt = torch.tensor([work.prompt_ids], device=self.loaded.device)
        self._open(number)
        begins = None if work.plan.prompt.staged else self._beginnings.of(work.prompt_ids)
        self._beginnings.drop(row)
        self._in_row[row] = number
        if work.state is not None:
            return (yield from self._take_up(work, work.state(), prompt, number, row))
        source = self._source_of(work)
        self._read[number] = 0
        if source is not None:
            self.cache.copy_prompt(source.row, row, work.seed)
            logits: torch.Tensor | None = source.logits
        else:
            logits = yield from read_prompt(
                self.loaded.model,
                self.cache,
                prompt,
                work.plan.schedule,
                plan=work.plan.prompt,
                lane=row,
                number=number,
                seed=work.seed,
                chunk=self.profile.prefill.chunk,
                begins=begins,
                native=self.loaded.native,
                interrupted=interrupted,
            )
            self._read[number] = self.cache.count(row).prompt - (begins.tokens if begins else 0)
        elapsed_s, peak_bytes = self._close(number)
        self._prefill[number] = elapsed_s, peak_bytes
        self._open(number)
        if logits is None:
            yield self._finished(number, row, work.plan.prompt_tokens, None)
            return None
        reading = self.cache.reading(row)
        yield PromptRead(row, work.plan.prompt_tokens, elapsed_s, peak_bytes, reading, number)
        lane = new_lane(self.loaded, work, prompt, logits, row, number)
        self._newest = work, lane
        self._beginnings.add(row, work.prompt_ids)
        return lane

    def _take_up(
        self, work: Work, state: LaneState, prompt: torch.Tensor, number: int, row: int
    ) -> Admission:
        lane = new_lane(self.loaded, work, prompt, prompt.new_empty(1, 0), row, number)
        go_on(self.cache, self.step, lane, state, work.plan.schedule, work.seed)
        self._close(number)
        told = state.numbers
        self._read[number] = told["read_tokens"]
        self._prefill[number] = told["prefill_s"], told["prefill_peak_bytes"]
        if not state.known:  # read by another run
            self._read[number], self._prefill[number] = 0, (0.0, 0)
        self._open(number, told["elapsed_s"] if state.known else 0.0)
        yield PromptRead(
            row,
            work.plan.prompt_tokens,
            told["prefill_s"],
            told["prefill_peak_bytes"],
            self.cache.reading(row),
            number,
        )
        return lane

    def between(self, lanes: list[Lane]) -> Iterator[Event]:
        """Nobody is in the middle of anything: the time to take loops back, and to keep states."""
        stopping = any(lane.reason for lane in lanes)
        for lane in lanes:
            if lane.back is not None and lane.back.found is not None and not stopping:
                yield lane.back.take_back(self.cache, lane)
            if lane.back is not None:
                lane.back.look(self.cache, lane)
        if self.keep is not None and (stopping or self.keep.due()):
            with self.keep.saving():
                for lane in lanes:
                    self.keep.take(lane.prompt, self.state(lane))

    def state(self, lane: Lane) -> LaneState:
        """See `state_of`. `rest`: what its end adds to the text, where it ends here."""
        prefill_s, peak_bytes = self._prefill[lane.prompt]
        more: dict[str, Any] = {
            "read_tokens": self._read[lane.prompt],
            "prefill_s": prefill_s,
            "prefill_peak_bytes": peak_bytes,
            "rest": lane.ending() if lane.reason else None,
        }
        state = state_of(self.cache, lane)
        if lane.back is not None:
            more |= {"rollback": lane.back.numbers()}
            if lane.reason in (None, "interrupted"):
                state = lane.back.state(state)
        return replace(state, numbers=state.numbers | more)

    def finish(self, lane: Lane) -> Finished:
        """What there is to say of a lane that has ended, while its row is still its own."""
        self._beginnings.end(lane.row)
        if self.keep is not None and self.keep.ends and lane.reason != "interrupted":
            self.keep.take(lane.prompt, self.state(lane))
        return self._finished(lane.prompt, lane.row, lane.prompt_ids.shape[1], lane)

    def failed(self, row: int, error: Exception) -> Failed:
        """What there is to say of a prompt that cannot be continued; whatever is our bug is raised."""
        if not isinstance(error, ScopeError):
            raise error
        return Failed(row, str(error), self._in_row[row], error.hint)

    def _source_of(self, work: Work) -> Lane | None:
        """The lane that has just read the same prompt, still has its row and has written nothing after it."""
        if self._newest is None:
            return None
        newest, lane = self._newest
        same = newest.prompt_ids == work.prompt_ids and newest.plan == work.plan
        if work.plan.prompt.draws and newest.seed != work.seed:
            return None  # chance decided what stayed of it
        mine = self._in_row.get(lane.row) == lane.prompt and lane.reason is None
        return lane if same and mine and lane.written == 0 and self.cache.can_copy(lane.row) else None

    def _finished(self, number: int, row: int, prompt_tokens: int, lane: Lane | None) -> Finished:
        decode_s, decode_peak = self._close(number)
        prefill_s, prefill_peak = self._prefill.pop(number)
        read_tokens = self._read.pop(number)
        rest = lane.flush() if lane else ""  # may complete a stop text
        stopped_by = lane.text.stopped if lane else None
        return Finished(
            lane=row,
            reason="stop" if stopped_by else (lane.reason if lane else None) or "interrupted",
            text=rest,
            prompt_tokens=prompt_tokens,
            read_tokens=read_tokens,
            reused_prompt_tokens=self.cache.count(row).prompt - read_tokens,
            output_tokens=lane.written if lane else 0,
            prefill_s=prefill_s,
            decode_s=decode_s,
            prefill_peak_bytes=prefill_peak,
            decode_peak_bytes=decode_peak,
            reading=self.cache.reading(row),
            audit=self.cache.audit(row, *((prompt_tokens, lane.fed) if lane else ())),
            loop=lane.loop if lane else None,
            taken_back=lane.back.taken if lane and lane.back else (),
            stopped_by=stopped_by,
            prompt=number,
        )

    def _open(self, number: int, before_s: float = 0.0) -> None:
        """A phase of a prompt begins, or goes on after so many seconds: reading, or writing."""
        self._lap()
        self._phases[number] = perf_counter() - before_s, 0

    def _close(self, number: int) -> tuple[float, int]:
        """Its seconds, and the most bytes in use meanwhile."""
        self._lap()
        began, peak_bytes = self._phases.pop(number)
        return perf_counter() - began, peak_bytes

    def _lap(self) -> None:
        lap = self.peak.lap()
        self._phases = {number: (began, max(peak, lap)) for number, (began, peak) in self._phases.items()}


def new_work(
    settings: LoadedProfile,
    geometry: Geometry,
    prompt_ids: list[int],
    nth: int = 0,
    notes: tuple[str, ...] = (),
) -> Work:
    """A prompt as the profile says; `nth` of several samples draws with a seed of its own."""
    sampling = settings.profile.sampling
    plan = make_plan(settings, geometry, len(prompt_ids))
    return Work(prompt_ids, plan, sampling, sampling.seed + nth, notes=notes)


def new_cache(loaded: LoadedModel, profile: Profile, shape: CacheShape) -> ScopeCache:
    """An empty cache, and the model's RoPE as long as the texts in it."""
    assert "auto" not in profile.cache.sides, "slots_check settles it, for whoever has a model and a profile"
    loaded.fix_length(shape.beyond)
    return ScopeCache(
        loaded.geometry,
        shape,
        policy_of(profile.decode),
        inv_freq=rope_frequencies(loaded.model),
        attention=attention_of(loaded.model, loaded.geometry, profile.decode.weigh is not None),
        dtype=loaded.dtype,
        device=loaded.device,
    )
