"""Options of one command in, one process's share of a job done, an exit code out."""

import os
import shutil
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from rich.console import Console

from scope_cli.batch.board import LiveBoard, LogBoard
from scope_cli.batch.desk import Desk
from scope_cli.batch.fit import Memory, check_weights, even
from scope_cli.batch.groups import Demand, Group, Order
from scope_cli.batch.inputs import Frame, Input, read_inputs
from scope_cli.batch.job import (
    Changes,
    JobSettings,
    Planned,
    check_settings,
    commit,
    compare,
    new_groups,
    refuse_foreign_files,
    roll_forward,
    tokenise,
)
from scope_cli.batch.ledger import DAMAGED, Ledger, Row
from scope_cli.batch.ledger import NAME as LEDGER
from scope_cli.batch.presence import HOST, Presence
from scope_cli.batch.results import write_results
from scope_cli.batch.states import RowStates, state_file, sweep_states
from scope_cli.batch.status import dry_run_lines, summary_lines
from scope_cli.console.phases import loading
from scope_cli.console.safe import printable
from scope_cli.console.signals import Interruption
from scope_cli.errors import (
    AuditError,
    BusyError,
    ModelError,
    OutOfMemoryError,
    ScopeError,
    UsageError,
    is_out_of_memory,
)
from scope_cli.files import sweep
from scope_cli.formats.base import PLAIN
from scope_cli.models.registry import find
from scope_cli.settings.load import LoadedProfile
from scope_cli.units import as_bytes, counted

if TYPE_CHECKING:
    from scope_cli.batch.local import LocalEngine
    from scope_cli.batch.on_ray import RayEngine
    from scope_cli.models.model import OpenedModel

MOST_NOTES = 10  # of one start
TELL_EVERY_S = 2.0  # while many prompts are read


@dataclass(frozen=True)
class Options:
    prompts: str
    out: Path
    settings: LoadedProfile
    frame: Frame
    globs: tuple[str, ...] = ()
    lanes: int | None = None
    order: Order = "longest"
    limit: int | None = None
    row_timeout: float | None = None
    fail_fast: bool = False
    retry_failed: bool = False
    restart: bool = False
    accept_changed: bool = False
    join: bool = False
    dry_run: bool = False
    report: bool = False
    checkpoint_every: float | None = None
    no_checkpoint: bool = False
    log_every: float = 30.0
    quiet: bool = False
    offline: bool = False
    engine: Literal["local", "ray"] = "local"
    ray_address: str | None = None
    workers: int | None = None

    @property
    def as_lines(self) -> bool:
        return not Path(self.prompts).expanduser().is_dir()

    def say(self, line: str) -> None:
        if not self.quiet:
            self.complain(line)

    def complain(self, line: str) -> None:
        """Also where nothing but errors is wanted."""
        print(printable(line), file=sys.stderr)


def run(options: Options) -> int:
    """Plan what is new, run what waits, say how it went."""
    if not options.as_lines and options.out.resolve() == Path(options.prompts).expanduser().resolve():
        raise UsageError(
            f"{options.out} holds the prompts: the texts would overwrite them",
            "choose another --output-dir",
        )
    inputs = read_inputs(options.prompts, options.globs, leave_out=options.out)
    first = next(inputs, None)
    if first is None:
        raise UsageError(f"there are no prompts in {options.prompts}", "is --glob right?")
    inputs = chain([first], inputs)
    if not options.dry_run:
        make_folder(options.out)

    settings = options.settings.profile.model
    with loading(settings.name, options.quiet) as phases:
        find(settings.name, options.offline, phases.say)  # what is not there is told before torch is imported

        from scope_cli.models.model import open_model

        opened = open_model(settings, options.offline, phases.say, options.lanes or 1)
    if options.dry_run:
        return dry_run(options, job_of(options, opened), opened, inputs)
    engine = engine_of(options, opened)
    try:
        return run_with(options, engine, inputs)
    except Exception as error:
        if is_out_of_memory(error) and not isinstance(error, ScopeError):
            raise OutOfMemoryError.of(error) from error
        raise
    finally:
        engine.close()


def job_of(options: Options, opened: "OpenedModel") -> JobSettings:
    return JobSettings(
        settings=options.settings,
        frame=options.frame,
        lanes=options.lanes,
        order=options.order,
        runs_on=f"{opened.device.type} {str(opened.dtype).removeprefix('torch.')}",
        max_seconds=options.row_timeout,
    )


def engine_of(options: Options, opened: "OpenedModel") -> "LocalEngine | RayEngine":
    if options.engine == "ray":
        from scope_cli.batch.on_ray import RayEngine

        return RayEngine(
            opened,
            options.settings.profile.model,
            options.offline,
            options.ray_address,
            options.workers,
            options.lanes or 1,
        )
    from scope_cli.batch.local import LocalEngine

    return LocalEngine(opened)


def run_with(options: Options, engine: "LocalEngine | RayEngine", inputs: Iterator[Input]) -> int:
    job = job_of(options, engine.opened)
    presence = Presence(options.out)
    with Interruption(ending_of(options)) as interruption:
        with presence.starting(options.join):
            others = presence.others()
            ledger = Ledger(options.out)
            for note in ledger.notes:
                options.say(f"note: {note}")
            if others and not options.join:
                raise BusyError(
                    who_is_there(ledger, others, options.out), "--join shares the prompts that wait"
                )
            ledger.check()
            start = Start(options, job, engine, ledger, interruption)
            if others:
                check_settings(ledger, job, accept=False, say=options.say)
            else:
                ledger.recover(())
                start.prepare(inputs)
            presence.enter()
            ledger.enter(presence.owner, os.getpid(), HOST)
        try:
            code = 0 if interruption() else work(options, start, presence)
            return interruption.exit_code or code
        finally:
            with suppress(sqlite3.Error, ScopeError):
                ledger.leave(presence.owner)
            presence.leave()
            ledger.close()


def ending_of(options: Options) -> str:
    """What Ctrl-C is answered with in a log; a board on a terminal is drawn anew all the time."""
    return "" if options.quiet or sys.stderr.isatty() else "ending after this step; again: at once\n"


def make_folder(out: Path) -> None:
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=out):
            pass
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}", "choose another --output-dir") from error


def who_is_there(ledger: Ledger, others: list[str], out: Path) -> str:
    known = {process["owner"]: process for process in ledger.processes()}
    names = [
        f"process {known[owner]['pid']} on {known[owner]['host']}" if owner in known else "a process"
        for owner in others
    ]
    return f"{' and '.join(names)} already work{'s' if len(names) == 1 else ''} on {out}"


class Start:
    """What a process needs before it can run rows: a planned ledger, and the model once there is work."""

    def __init__(
        self,
        options: Options,
        job: JobSettings,
        engine: "LocalEngine | RayEngine",
        ledger: Ledger,
        interruption: Interruption,
    ) -> None:
        self.options, self.job, self.engine, self.opened = options, job, engine, engine.opened
        self.ledger, self.interruption = ledger, interruption

    def prepare(self, inputs: Iterator[Input]) -> None:
        """Bring the ledger up to the inputs, in one transaction at the end."""
        options, ledger, out, restart = self.options, self.ledger, self.options.out, self.options.restart
        changed = False
        if not restart:
            for mended in ledger.mend():
                options.say(f"note: {mended}: {DAMAGED}; it is run again")
            roll_forward(ledger, out, options.complain)
            changed = check_settings(ledger, self.job, options.accept_changed, options.say)
        changes = compare(
            ledger,
            inputs,
            out,
            as_lines=options.as_lines,
            retry_failed=options.retry_failed,
            settings_changed=changed,
            restart=restart,
        )
        for line in changes.in_words():
            options.say(line)
        refuse_foreign_files(
            out,
            [row for row, _ in changes.fresh if row.state == "waiting" and not row.attempts],
            [] if options.as_lines else [Path(one.source) for _, one in changes.fresh],
            lost=not restart and ledger.get("settings") is None,
            own={row.output for row in ledger.rows()} if restart else None,
        )
        planned = self._tokenise(changes)
        if self.interruption():
            return
        memory, groups = None if restart else ledger.get("memory"), []
        if planned.demands:
            first = 0 if restart else max((group["number"] for group in ledger.groups()), default=-1) + 1
            now = by_sizes = self.memory(memory, planned.demands)
            groups = new_groups(planned, self.opened, self.job, now, first)  # before any weight is read
            if memory is None:
                longest = max(demand.prompt_tokens for demand in planned.demands)
                output = max(demand.planned_tokens for demand in planned.demands)
                now = self.engine.measure(options.settings, longest, output).at_least(by_sizes)
                groups = new_groups(planned, self.opened, self.job, now, first)
            memory = now.as_dict()
        for note, count in planned.notes.most_common(MOST_NOTES):
            options.say(f"note: {counted(count, 'prompt')}: {note}")
        for row in planned.rows:
            if row.state == "failed":
                options.complain(f"failed: {row.id}: {row.error}")
        commit(ledger, self.job, changes, planned, groups, {"memory": memory}, restart)
        sweep_all(ledger, out)
        if restart:
            shutil.rmtree(state_file(out, 0).parent, ignore_errors=True)
        sweep_states(ledger, out)

    def _tokenise(self, changes: Changes) -> Planned:
        planned, told = Planned(), time.monotonic() + TELL_EVERY_S
        for planned in tokenise(self.opened, self.job, changes.fresh):
            if time.monotonic() > told:
                told = time.monotonic() + TELL_EVERY_S
                self.options.say(
                    f"tokenised {len(planned.rows):,} of {counted(len(changes.fresh), 'prompt')}"
                )
            if self.interruption():
                break
        return planned

    def memory(self, known: dict[str, int] | None, demands: Sequence[Demand] = ()) -> Memory:
        """As it was measured when the job was planned, or, before that, what sizes alone say."""
        if known is None:
            check_weights(self.opened, self.engine.free_bytes())
            return Memory.planned_for(demands, self.engine.free_bytes(), self.opened.weight_bytes)
        return replace(Memory(**known), free_bytes=self.engine.free_bytes())

    def groups(self, desk: Desk) -> list[Group]:
        """The groups of the ledger, with fewer lanes where less memory is free than when they were made."""
        memory, groups = self.memory(self.ledger.get("memory")), []
        for group in map(Group.of, self.ledger.groups()):
            fit = memory.lanes_that_fit(group)
            if fit < 1:
                raise ModelError(
                    f"not enough memory: a lane of {as_bytes(group.lane_bytes)} does not fit beside "
                    f"the weights, {as_bytes(memory.free_bytes)} were free before them",
                    "end what else runs on this machine",
                )
            if fit < group.lanes and desk.waits(group):
                lanes = even(fit)
                desk.reduce(group, lanes, f"{lanes} of {group.lanes} lanes fit the memory that is free now")
                group = group.with_lanes(lanes)
            groups.append(group)
        return groups


def work(options: Options, start: Start, presence: Presence) -> int:
    """Run rows until none waits here; the exit code."""
    ledger, stop = start.ledger, start.interruption
    board = make_board(options, start)
    states = None
    if not options.no_checkpoint:
        states = RowStates(options.out, start.opened, start.job.hash, options.complain)
    desk = Desk(
        ledger,
        options.out,
        presence.owner,
        options.settings,
        start.job.hash,
        start.opened,
        board,
        limit=options.limit,
        fail_fast=options.fail_fast,
        max_seconds=options.row_timeout,
        states=states,
        checkpoint_every=options.checkpoint_every,
    )
    began, unwritten = time.monotonic(), False
    try:
        while ledger.counts()["waiting"] + ledger.counts()["interrupted"]:
            start.engine.run(desk, start.groups(desk), lambda: stop() or desk.stopping)
            if stop() or desk.stopping or desk.used_up or not take_over(options, ledger, presence):
                break
    finally:
        board.close()
        with suppress(sqlite3.Error, ScopeError):
            desk.interrupt()
        try:
            write_results(ledger, options.out)
        except ScopeError as error:
            options.complain(f"failed: {error}")
            unwritten = True
    if options.report:
        from scope_cli.batch.report import write_report

        options.say(f"report:    {write_report(ledger, options.out)}")
    for line in summary_lines(ledger, desk, time.monotonic() - began):
        options.say(line)
    lost = [] if stop() or desk.stopping or desk.used_up else lost_texts(options, ledger, presence)
    for row in lost:
        options.complain(f"missing: {row.output} was written and is gone; the same command writes it again")
    if desk.audit_failed:
        raise AuditError("the audit of a prompt failed", "a bug in scope: please report it with its record")
    return 1 if lost or unwritten or ledger.counts()["failed"] else 0


def take_over(options: Options, ledger: Ledger, presence: Presence) -> bool:
    """What processes that died meanwhile had finished gets its name, their rows wait again; are there any?"""
    with presence.starting(join=True):
        roll_forward(ledger, options.out, options.complain)
        return ledger.recover([presence.owner, *presence.others()]) > 0


def lost_texts(options: Options, ledger: Ledger, presence: Presence) -> list[Row]:
    """At the end of a job: every row that is done has its text, or is in this list."""
    with presence.starting(join=True):
        roll_forward(ledger, options.out, options.complain)
        return [row for row in ledger.rows("done") if not (options.out / row.output).exists()]


def sweep_all(ledger: Ledger, out: Path) -> None:
    """What a killed process left half written beside its outputs."""
    for folder in {(out / row.output).parent for row in ledger.rows()} | {out}:
        sweep(folder)


def make_board(options: Options, start: Start) -> LogBoard:
    console, geometry = Console(stderr=True), start.opened.geometry
    if not console.is_terminal or options.quiet:
        return LogBoard(console, start.ledger, options.log_every, options.quiet)
    form, itemsize = start.job.settings.profile.cache.form, start.opened.dtype.itemsize
    held, full = (one.policy_token_bytes(geometry, itemsize) for one in (form, PLAIN))
    return LiveBoard(console, start.ledger, (held, full))


def dry_run(options: Options, job: JobSettings, opened: "OpenedModel", inputs: Iterator[Input]) -> int:
    """Everything up to the plan, and nothing written."""
    from scope_cli.machine.memory import free_bytes

    with tempfile.TemporaryDirectory() as nowhere:
        there = (options.out / LEDGER).is_file() and not options.restart
        ledger = Ledger(options.out if there else Path(nowhere), read_only=there)
        changed = check_settings(ledger, job, options.accept_changed)
        changes = compare(
            ledger, inputs, options.out, as_lines=options.as_lines,
            retry_failed=options.retry_failed, settings_changed=changed,
        )  # fmt: skip
        planned = Planned()
        for planned in tokenise(opened, job, changes.fresh):  # noqa: B007  the last one has all
            pass
        memory = Memory.planned_for(planned.demands, free_bytes(opened.device), opened.weight_bytes)
        groups = new_groups(planned, opened, job, memory, first=0)
        for line in dry_run_lines(planned, groups, memory, ledger, changes):
            print(printable(line))
        ledger.close()
    return 0
