"""One model on a Ray worker: tasks of a group in; events and the rows' states out, in small batches."""

import os
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from queue import Empty, Queue
from typing import TYPE_CHECKING, Any

from scope_cli.batch.fit import Memory, check_weights
from scope_cli.batch.groups import Group
from scope_cli.batch.local import Trouble, trouble_of
from scope_cli.batch.states import Keeper
from scope_cli.batch.work import Task
from scope_cli.events import Event, Failed, Finished
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import ModelSettings, Profile

if TYPE_CHECKING:
    from scope_cli.engine.state import LaneState
    from scope_cli.models.model import LoadedModel

BATCH_S = 0.1  # a worker waits so long for more events before it hands over what it has


@dataclass(frozen=True)
class Begin:
    """A group, and what a worker has to know of the job."""

    profile: Profile
    group: Group
    keeps: bool  # the rows' states
    checkpoint_every: float | None


@dataclass(frozen=True)
class KeptRow:
    """Where a row is, among the events before and after it."""

    number: int
    state: "LaneState"

    def __call__(self) -> "LaneState":
        """As `Work.state` is asked for."""
        return self.state


@dataclass(frozen=True)
class Told:
    """What a worker hands over."""

    events: list[Event | KeptRow]
    wants: int  # tasks that it could begin, or have ready
    lines: list[str] = field(default_factory=list)  # for people
    ended: bool = False  # its group is through, or broken off
    trouble: Trouble | None = None


class Inbox(Iterator[Task]):
    """Tasks as they are handed over. Nothing there: who has lanes running is told so, who has none waits."""

    def __init__(self) -> None:
        self._queue: Queue[Task | None] = Queue()
        self.running = 0
        self._closed = False

    def put(self, tasks: list[Task], last: bool) -> None:
        for task in tasks:
            self._queue.put(task)
        if last:
            self._queue.put(None)

    @property
    def waiting(self) -> int:
        return self._queue.qsize()

    def __next__(self) -> Task:
        if self._closed:
            raise StopIteration
        try:
            task = self._queue.get(block=self.running == 0)
        except Empty:
            raise StopIteration from None
        if task is None:
            self._closed = True
            raise StopIteration
        self.running += 1
        return task


class Worker:
    """One model on one device; `exchange` begins a group, and goes on until that has ended."""

    def __init__(self, model: ModelSettings, offline: bool, lanes: int = 1) -> None:
        """lanes: that were asked for; the dtype may depend on them"""
        from scope_cli.machine.memory import free_bytes
        from scope_cli.models.model import open_model

        self._opened = open_model(model, offline, lanes=lanes)
        self._free_bytes = free_bytes(self._opened.device)
        self._model: LoadedModel | None = None
        self._interrupted = False
        self._lines: Queue[str] = Queue()  # for people

    def describe(self) -> dict[str, Any]:
        return {
            "pid": os.getpid(),
            "device": self._opened.device,
            "dtype": self._opened.dtype,
            "weight_bytes": self._opened.weight_bytes,
            "free_bytes": self._free_bytes,
        }

    def _loaded(self) -> "LoadedModel":
        if self._model is None:
            check_weights(self._opened, self._free_bytes)
            self._model = self._opened.load()
        return self._model

    def slots(self, settings: LoadedProfile) -> tuple[LoadedProfile, str | None]:
        from scope_cli.engine.slots_check import slots_of

        return slots_of(self._loaded(), settings)

    def measure(self, settings: LoadedProfile, prompt_tokens: int, new_tokens: int) -> Memory:
        from scope_cli.batch.workspace import measure

        return measure(self._loaded(), settings, prompt_tokens, new_tokens, self._free_bytes)

    def exchange(self, begin: Begin | None, tasks: list[Task], last: bool, interrupt: bool) -> Told:
        """Take tasks (the last ones?) of the group that runs or begins, hand over what has happened since."""
        if begin is not None:
            self._group = begin.group
            self._inbox = Inbox()
            self._events: Queue[Event | KeptRow | Told] = Queue()
            threading.Thread(target=self._run, args=(begin, self._inbox), daemon=True).start()
        self._interrupted |= interrupt
        self._inbox.put(tasks, last or interrupt)
        events: list[Event | KeptRow] = []
        until = time.monotonic() + BATCH_S
        while (left := until - time.monotonic()) > 0:
            try:
                event = self._events.get(timeout=left)
            except Empty:
                break
            if isinstance(event, Told):
                return replace(event, events=events, lines=self._said())
            events.append(event)
        busy = self._inbox.running + self._inbox.waiting
        return Told(events, max(0, self._group.lanes + 1 - busy), self._said())

    def _said(self) -> list[str]:
        return [self._lines.get() for _ in range(self._lines.qsize())]

    def _run(self, begin: "Begin", inbox: Inbox) -> None:
        from scope_cli.batch.runner import run_group

        def give(number: int, state: "LaneState") -> None:
            """A copy: it is handed over while the lane goes on."""
            tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
            self._events.put(KeptRow(number, replace(state, tensors=tensors)))

        trouble, keeper = None, Keeper(give, begin.checkpoint_every) if begin.keeps else None
        try:
            for event in run_group(
                self._loaded(), begin.profile, begin.group, inbox, lambda: self._interrupted, self._lines.put,
                keeper,
            ):  # fmt: skip
                if isinstance(event, Finished | Failed):
                    inbox.running -= 1
                self._events.put(event)
        except BaseException as error:
            trouble = trouble_of(error)
        self._events.put(Told([], wants=0, ended=True, trouble=trouble))
