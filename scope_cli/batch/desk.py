"""Hands out rows, takes in events: text to NAME.part, the end of a row to the ledger, news to a board.

Whoever runs rows, here or on another machine, comes to this desk; the ledger and the outputs are its own.
"""

import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from scope_cli.batch.groups import Group
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.reasons import in_words, reason_and_detail
from scope_cli.batch.results import append_result
from scope_cli.batch.rows import Row
from scope_cli.batch.states import Keeper, RowStates
from scope_cli.batch.work import Task, task_of
from scope_cli.batch.writer import DiskError, OutputError, PartFile, publish, write_record
from scope_cli.errors import ScopeError
from scope_cli.events import (
    Busy,
    Event,
    Failed,
    Finished,
    PromptProgress,
    PromptRead,
    Started,
    TakenBack,
    Token,
)
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.schema import Profile

if TYPE_CHECKING:
    from scope_cli.engine.state import LaneState
    from scope_cli.models.model import OpenedModel


@dataclass
class Running:
    """One row on its way."""

    row: Row
    task: Task
    group: Group
    worker: str  # who runs it; "" is this process
    file: PartFile
    began: float = field(default_factory=time.monotonic)
    read: int = 0  # prompt tokens
    tokens: int = 0
    first_token: float | None = None  # seconds on the clock
    held: int = 0  # of what its schedule limits
    resumed: int = 0  # tokens that an earlier attempt has written
    read_bytes: tuple[int, int] = (0, 0)  # held, and of a full cache, when the prompt had been read

    def wrote(self, n: int) -> None:
        """Its n-th token is there; the schedule tells how many are still held."""
        schedule = self.task.work.plan.schedule
        for written in range(self.tokens + 1, n + 1):
            self.held = schedule.after(written, self.held)
        self.tokens = n

    def bytes(self, token_bytes: tuple[int, int]) -> tuple[int, int]:
        """Keys and values that it holds now, and that a full cache would hold."""
        (held, full), (held_token, full_token) = self.read_bytes, token_bytes
        return held + (self.held - self.base) * held_token, full + self.tokens * full_token

    @property
    def base(self) -> int:
        """Prompt tokens that the schedule counts as well."""
        return self.task.work.plan.schedule.base


class Board(Protocol):
    """Where a person sees the job."""

    def began(self, running: Running) -> None: ...
    def went_on(self, running: Running) -> None: ...
    def ended(self, row: Row, running: Running | None) -> None: ...
    def say(self, line: str) -> None: ...


class Desk:
    def __init__(
        self,
        ledger: Ledger,
        out: Path,
        owner: str,
        settings: LoadedProfile,
        settings_hash: str,
        opened: "OpenedModel",
        board: Board,
        *,
        limit: int | None = None,
        fail_fast: bool = False,
        max_seconds: float | None = None,
        states: RowStates | None = None,
        checkpoint_every: float | None = None,
        from_model: dict[str, Any] | None = None,
    ) -> None:
        """from_model: sampling in the settings that the model's files decided"""
        self._states, self.checkpoint_every = states, checkpoint_every
        self.keeper = None if states is None else Keeper(self.keep, checkpoint_every)
        self.ledger, self.out, self.owner, self.board = ledger, out, owner, board
        self._settings, self._settings_hash, self._opened = settings, settings_hash, opened
        self._max_seconds = max_seconds
        self._from_model = from_model or {}
        self._left = limit
        self._fail_fast = fail_fast
        self._reduced: dict[int, tuple[int, str]] = {}  # groups with fewer lanes than planned: how many, why
        self.running: dict[int, Running] = {}
        self.stopping = False  # a row failed, and --fail-fast was given
        self.audit_failed = False
        self.tokens = 0  # written in this run
        self.prompt_tokens = 0  # of rows that began and ended in this run
        self.reused_prompt_tokens = 0  # of them, those that were copied
        self.peak_bytes = 0
        self.groups_run: list[Group] = []

    @property
    def profile(self) -> Profile:
        """What all rows have in common: the cache's policy."""
        return self._settings.profile

    # Rows out

    def waits(self, group: Group) -> bool:
        return not self.used_up and self.ledger.waiting_in(group.number) > 0

    @property
    def used_up(self) -> bool:
        """So many rows as --limit allows have been handed out."""
        return self._left is not None and self._left <= 0

    def take(self, group: Group, number: int | None = None, worker: str = "") -> Task | None:
        """The next row of a group, or that row. One that cannot be written fails, and the next is taken."""
        while not self.stopping and (number is not None or not self.used_up):
            row = self.ledger.take(self.owner, group.number, self._settings_hash, number)
            if row is None:
                return None
            if self._left is not None and number is None:
                self._left -= 1
            task = None
            try:
                task = task_of(row, self._settings, self._opened, self._max_seconds)
                before = self._states.find(row, group) if self._states else None
                file = PartFile(self.out, row.output, before.end if before else 0)
            except DiskError:
                raise
            except Exception as error:
                if task is None:  # what is planned cannot be run: the next try plans it again
                    self.ledger.change(row.number, prompt_tokens=None)
                told = str(error) if isinstance(error, ScopeError) else in_words(error)
                self._end(row, None, "failed", self._record(row, task, group), *reason_and_detail(told))
                continue
            self.running[row.number] = running = Running(row, task, group, worker, file)
            self.board.began(running)
            if before is None:
                return task
            running.resumed = before.tokens
            return replace(task, work=replace(task.work, state=before.read))
        return None

    def tasks_of(self, group: Group) -> Iterator[Task]:
        """Rows of a group, one whenever it is asked."""
        return iter(lambda: self.take(group), None)

    # Events in

    def receive(self, event: Event) -> None:
        if isinstance(event, Started | Busy):
            return
        running = self.running.get(event.prompt)
        if running is None:  # it failed when it was written; its lane goes on to its end
            return
        try:
            if isinstance(event, PromptProgress):
                running.read = event.read
                self.board.went_on(running)
            elif isinstance(event, PromptRead):
                running.held = running.base
                running.read_bytes = event.reading.held_bytes, event.reading.full_bytes
            elif isinstance(event, Token):
                running.first_token = running.first_token or time.monotonic()
                self.tokens += 1
                running.wrote(event.n)
                running.file.write(event.text)
                self.board.went_on(running)
            elif isinstance(event, TakenBack):
                self.board.say(f"{running.row.id}: {event.in_words}")
            elif isinstance(event, Finished):
                self.peak_bytes = max(self.peak_bytes, event.prefill_peak_bytes, event.decode_peak_bytes)
                running.file.write(event.text)
                running.file.close()
                if not running.resumed:
                    self.prompt_tokens += event.prompt_tokens
                    self.reused_prompt_tokens += event.reused_prompt_tokens
                self._finished(running, event)
            elif isinstance(event, Failed):
                running.file.write(event.text)
                self.fail(event.prompt, *reason_and_detail(event.error))
        except OutputError as error:
            self.fail(event.prompt, str(error))

    def keep(self, number: int, state: "LaneState") -> None:
        """Where a row is that runs here; all that it wrote has been received."""
        running = self.running.get(number)
        if running is not None and self._states is not None:
            sampling = running.task.work.sampling
            self._states.keep(
                running.row, running.group, running.file, state, self._opened.stops(sampling).texts
            )

    def _finished(self, running: Running, event: Finished) -> None:
        record = self._record(running.row, running.task, running.group, event)
        if event.reason == "interrupted":
            self._end(running.row, running, "interrupted", record)
        elif not event.audit.passed:
            self.audit_failed = True
            told = "the audit failed: " + "; ".join(event.audit.problems)
            self._end(running.row, running, "failed", record, told)
        else:
            self._end(running.row, running, "done", record)

    def fail(self, number: int, reason: str, detail: str | None = None) -> None:
        """A row that runs here cannot be run to its end; what it wrote stays in NAME.part."""
        running = self.running[number]
        self._close_quietly(running)
        record = self._record(running.row, running.task, running.group)
        self._end(running.row, running, "failed", record, reason, detail)

    def put_back(self, numbers: Sequence[int]) -> None:
        """Rows that run here wait again, because of something that is not their fault."""
        for number in numbers:
            self._close_quietly(self.running.pop(number))
            if self._left is not None:
                self._left += 1
        if numbers:
            self.ledger.give_back(self.owner, "waiting", *numbers)

    def reduce(self, group: Group, lanes: int, why: str) -> None:
        """From here on a group runs with fewer lanes, and each record says so: the texts may differ."""
        self._reduced[group.number] = lanes, why
        self.board.say(f"{why}; the texts may differ from those of a run with more")

    def interrupt(self) -> None:
        """Whatever still runs here is marked interrupted: the process ends before the rows do."""
        for running in self.running.values():
            self._close_quietly(running)
        self.running.clear()
        self.ledger.give_back(self.owner, "interrupted")

    def _close_quietly(self, running: Running) -> None:
        try:
            running.file.close()
        except Exception:  # there is an error already, and that one is told
            return

    def _end(
        self,
        row: Row,
        running: Running | None,
        state: Any,
        record: dict[str, Any],
        error: str | None = None,
        detail: str | None = None,
    ) -> None:
        """First the ledger, then the files: what a kill leaves in between is put right at the next start.

        A text that cannot get its name has failed, whatever was done before.
        """
        record |= {"status": {"done": "finished"}.get(state, state), "error": error}
        ours = self.ledger.end(row.number, self.owner, state, record, error, detail)
        self.running.pop(row.number, None)
        if ours and self._states is not None and state == "failed":
            self._states.drop(row.number)
        if not ours:
            return
        if state == "done":
            try:
                publish(self.out, row.output, record)
            except OutputError as problem:
                state, error = "failed", str(problem)
                record |= {"status": state, "error": error}
                self.ledger.withdraw(row.number, error)
            if self._states is not None:
                self._states.drop(row.number)
        with suppress(OutputError):  # the ledger says it too, and results.jsonl is made from it at the end
            if state == "failed" and running is not None:
                write_record(self.out / row.output, record)
            append_result(self.out, self.ledger.row(row.number))
        self.board.ended(self.ledger.row(row.number), running)
        if state == "failed" and self._fail_fast:
            self.stopping = True

    def _record(
        self, row: Row, task: Task | None, group: Group, event: Finished | None = None
    ) -> dict[str, Any]:
        """What belongs to the text of one row; `results` as in the record of a single run."""
        from scope_cli.engine.facts import versions
        from scope_cli.engine.run_plan import policy_in_words

        lanes, why = self._reduced.get(group.number, (0, ""))
        result = {} if event is None else asdict(event)
        running = self.running.get(row.number)
        result.pop("text", None)  # the end of the text, and the text is in the file
        return {
            "id": row.id,
            "source": row.source,
            "content_hash": row.content_hash,
            "attempt": row.attempts,
            "goes_on_after": running.resumed if running else 0,
            "started_at": _iso(row.started_at),
            "finished_at": _iso(time.time()),
            "lanes": group.lanes,
            "group": group.number,
            "fewer_lanes": why if group.lanes <= lanes else None,
            "policy": policy_in_words(task.settings.profile, task.work.plan) if task else None,
            "profile": (task.settings if task else self._settings).profile.as_dict(),
            "from_model": {key: one for key, one in self._from_model.items() if key not in row.sampling},
            "model": self._opened.describe(),
            "versions": versions(),
            "notes": list(task.work.plan.notes) if task else [],
            "results": [result] if result else [],
        }


def _iso(seconds: float | None) -> str | None:
    return datetime.fromtimestamp(seconds).astimezone().isoformat(timespec="seconds") if seconds else None
