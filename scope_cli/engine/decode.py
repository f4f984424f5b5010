"""Prompts in, one Token event per lane and step out; the only decode loop.

Lanes run side by side, one row of the cache each. A finished lane's row takes the next prompt, which is read
a chunk at a time between two steps. The step itself is whoever is called: plain, compiled, or a CUDA graph.
"""

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass, field, replace
from math import isfinite
from time import perf_counter

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.store import by_numbers
from scope_cli.engine.loops import LoopWatch
from scope_cli.engine.rollback import Rollback
from scope_cli.engine.sampling import AS_SET, Asked, Picked, Sampler, pick_all
from scope_cli.engine.text import TextStream
from scope_cli.errors import ScopeError
from scope_cli.events import Event, Failed, FinishReason, Loop, PromptProgress, Token
from scope_cli.settings.schema import OnLoop

NO_NUMBERS = (
    "float16 overflows in some models: try --dtype bfloat16 or float32; "
    "otherwise the checkpoint is damaged: fetch the model again"
)


@dataclass
class Lane:
    """One sequence on its way: what it samples with, what it has written, when it ends."""

    prompt_ids: Tensor  # [1, prompt_tokens]
    logits: Tensor  # [1, vocab], of the last token read
    sampler: Sampler
    text: TextStream
    eos_ids: frozenset[int]  # that end the output, as do the stop tokens
    max_new_tokens: int
    stop_tokens: Mapping[int, str] = field(default_factory=dict)  # by id: the text that the end is told with
    on_loop: OnLoop = "ignore"
    at_the_end: FinishReason = "length"  # the reason when max_new_tokens are written
    max_seconds: float | None = None
    row: int = 0  # of the cache
    prompt: int = 0  # its number in the job
    written: int = 0
    fed: int = 0  # of them, to the model
    reason: FinishReason | None = None
    watch: LoopWatch = field(default_factory=LoopWatch)
    started: float = field(default_factory=perf_counter)  # seconds on the clock
    ids: Tensor = field(init=False)  # [1, prompt_tokens + max_new_tokens], filled from the left
    back: Rollback | None = field(init=False)

    def __post_init__(self) -> None:
        self.back = Rollback() if self.on_loop == "rollback" else None
        room = self.prompt_ids.new_zeros(1, self.max_new_tokens)
        self.ids = torch.cat([self.prompt_ids, room], 1)
        self._ids, self._prompt_tokens = by_numbers(self.ids), self.prompt_ids.shape[1]

    @property
    def elapsed_s(self) -> float:
        return perf_counter() - self.started

    @property
    def loop(self) -> Loop | None:
        return self.watch.longest()

    @property
    def feeds_again(self) -> bool:
        """Is the next token one that was chosen before?"""
        return self.back is not None and self.back.feeds_again(self.written)

    def tell(self, token: Token) -> Iterable[Token]:
        """What is certain now: the newest token itself, unless loops are taken back."""
        if self.back is None:
            return [token]
        return self.back.tell(token, self.watch.safe)

    def rest(self) -> Iterable[Token]:
        """What was not certain until the lane ended; nothing where it is broken off on its way back."""
        return [] if self.back is None or self.feeds_again else self.back.rest()

    def flush(self) -> str:
        """What its text had held back, behind all that."""
        return "" if self.feeds_again else self.text.flush()

    def ending(self) -> str:
        """All that its end would add to the text now."""
        if self.feeds_again:
            return ""
        return (self.back.waiting_text if self.back else "") + copy(self.text).flush()

    @property
    def so_far(self) -> int:
        """Tokens of prompt and output."""
        return self._prompt_tokens + self.written

    def ask(self) -> Asked:
        """For the next token."""
        if self.feeds_again:
            return Asked(self.logits, self.logits, known=self.ids[:, self.so_far : self.so_far + 1])
        change = self.back.change(self.written) if self.back else AS_SET
        return self.sampler.ask(self.logits, self.ids[:, : self.so_far], change)

    def take(self, picked: Tensor | tuple[int, float]) -> None:
        """What was picked, on the device: its id is the first number."""
        self._ids[0, self.so_far] = picked[0]
        self.written += 1

    def receive(self, token_id: int, logprob: float) -> str:
        """Take the id that was chosen, and notice whether it ends the lane; printable text.

        Raises ScopeError where the model gave no numbers to choose by.
        """
        if not isfinite(logprob):
            raise ScopeError(
                f"the model computed no numbers for token {self.written:,} of the output: "
                f"its log-probability is {logprob}",
                NO_NUMBERS,
            )
        ends = token_id in self.eos_ids or token_id in self.stop_tokens
        text = "" if ends else self.text.feed(token_id)  # what ends it is no part of it
        loop = None
        if self.on_loop == "ignore":
            self.watch.note(token_id)
        else:
            loop = self.watch.feed(token_id)
        if ends or self.text.stopped is not None:
            self.reason = "stop"
            self.text.stopped = self.stop_tokens.get(token_id, self.text.stopped)
        elif loop is not None and (self.on_loop == "stop" or (self.back and not self.back.allows(loop))):
            self.reason = "loop"
        elif self.written == self.max_new_tokens:
            self.reason = self.at_the_end
        elif self.max_seconds is not None and self.elapsed_s > self.max_seconds:
            self.reason = "time"
        elif loop is not None and self.back is not None and self.written > self.back.told:
            self.back.found = loop
        return text


def raise_again(row: int, error: Exception) -> Event:
    """What went wrong with one lane ends the run."""
    raise error


Admission = Generator[Event, None, Lane | None]


@torch.no_grad()
def decode(
    step: Callable[[Tensor], Tensor],
    cache: ScopeCache,
    admit: Callable[[int], Admission | None],
    finish: Callable[[Lane], Event],
    interrupted: Callable[[], bool] = lambda: False,
    fail: Callable[[int, Exception], Event] = raise_again,
    ahead: bool | None = None,
    between: Callable[[list[Lane]], Iterable[Event]] = lambda lanes: (),
) -> Iterator[Event]:
    """Write until no lane runs and no prompt waits.

    step: the newest ids, [lanes, 1], in, and the logits of what follows, [lanes, vocab], out
    admit: starts to read the next prompt into a row, and returns its lane at the end (None: it was
        interrupted); None where no prompt waits
    finish: what to report of a lane that has ended, while its row is still its own
    interrupted: asked once per token; lanes that run end with it, prompts that wait are not begun
    fail: what to report of a row that cannot be read or whose output cannot be taken, while the others go on
    ahead: launch the next step before reading what was sampled, so that the device never waits for the host;
        a lane that turns out to have ended has then taken part in one step too many. By default on a GPU.
    between: shown the lanes that run, between two steps: all that they wrote has been fed, and told unless it
        may yet be taken back. Those that are about to end as interrupted say so
    """
    if ahead is None:
        ahead = cache.device.type != "cpu"
    lanes: list[Lane | None] = [None] * cache.shape.lanes
    ids = torch.zeros(len(lanes), 1, dtype=torch.int64, device=cache.device)  # the newest of each
    newest = by_numbers(ids)
    reading: Admission | None = None
    row = 0

    def leave(lane: Lane, failed: bool = False) -> None:
        (cache.abandon if failed else cache.finish)(lane.row)
        lanes[lane.row] = None

    def give_up(lane: Lane, error: Exception) -> Iterator[Event]:
        leave(lane, failed=True)
        event = fail(lane.row, error)
        yield from lane.rest()
        with suppress(Exception):  # the text itself may be what cannot be taken; that has been told
            if isinstance(event, Failed):
                event = replace(event, text=lane.flush())
        yield event

    while True:
        while reading is not None or (None in lanes and not interrupted()):
            if reading is None:
                row = lanes.index(None)
                reading = admit(row)
                if reading is None:
                    break
            try:
                event = next(reading)
                yield event
            except StopIteration as end:
                lanes[row], reading = end.value, None
            except Exception as error:
                reading = None
                cache.finish(row)
                yield fail(row, error)
            else:
                if isinstance(event, PromptProgress) and any(lanes):
                    break  # who writes waits for one chunk and no longer
        if not any(lanes):
            return
        present = [lane for lane in lanes if lane is not None]
        if stopping := interrupted():
            for lane in present:
                lane.reason = "interrupted"
        yield from between(present)
        if stopping:
            for lane in present:
                leave(lane)
                yield from lane.rest()
                yield finish(lane)
            continue
        running, asked = [], []
        for lane in present:
            try:
                asked.append(lane.ask())
                running.append(lane)
            except Exception as error:
                yield from give_up(lane, error)
        if not running:
            continue
        picked = pick_all(asked)
        for lane, one in zip(running, picked, strict=True):
            lane.take(one)
            newest[lane.row, 0] = one[0]
        sent = Sent(picked)
        if ahead:
            for lane in running:
                if lane.written == lane.max_new_tokens:
                    cache.finish(lane.row)
            step_on(step, cache, [lane for lane in running if lane.written < lane.max_new_tokens], ids)
        now = received(sent)
        state = cache.reading()
        for lane, (token_id, logprob) in zip(running, now, strict=True):
            try:
                text = lane.receive(int(token_id), logprob)
            except Exception as error:
                yield from give_up(lane, error)
                continue
            yield from lane.tell(
                Token(
                    lane.row,
                    lane.written,
                    int(token_id),
                    text,
                    logprob,
                    lane.elapsed_s,
                    state,
                    prompt=lane.prompt,
                )
            )
            if lane.reason is not None:
                leave(lane)
                yield from lane.rest()
                yield finish(lane)
        if not ahead:
            step_on(step, cache, [lane for lane in lanes if lane is not None], ids)


class Sent:
    """What was picked, on its way to the host.

    A GPU does one thing after the other: a copy that is asked for after the next step has been launched comes
    after that step.
    """

    def __init__(self, picked: Picked) -> None:
        self._told, self._there = picked, None
        if isinstance(picked, Tensor):
            self._told = picked.to("cpu", non_blocking=picked.is_cuda)
            if picked.is_cuda:
                self._there = torch.cuda.Event()
                self._there.record(torch.cuda.current_stream(picked.device))

    def read(self) -> Sequence[Sequence[float]]:
        """Each lane's id and log-probability."""
        if self._there is not None:
            self._there.synchronize()
        told: Sequence[Sequence[float]] = (
            self._told.tolist() if isinstance(self._told, Tensor) else self._told
        )
        return told


def received(sent: Sent) -> Sequence[Sequence[float]]:
    """What was picked, on the host: the one time that it waits for the device."""
    return sent.read()


def step_on(step: Callable[[Tensor], Tensor], cache: ScopeCache, lanes: list[Lane], ids: Tensor) -> None:
    """Feed each lane its newest token, of `ids`, [lanes, 1], and leave the next logits with it."""
    if not lanes:
        return
    logits = step(ids)
    cache.end_step()
    rows = [logits] if logits.shape[0] == 1 else logits.split(1)
    for lane in lanes:
        lane.logits = rows[lane.row]
        lane.fed += 1
        if cache.device.type != "cpu":
            cache.count_transfer(lane.row, 16)  # an id and a log-probability (float64) come back
