"""Options of one command in, one process's share of a job done, an exit code out."""

import os
import sqlite3
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from scope_cli.batch.board import LiveBoard, LogBoard
from scope_cli.batch.desk import Desk
from scope_cli.batch.folder import read_inputs
from scope_cli.batch.inputs import Input
from scope_cli.batch.job import JobSettings, check_settings, roll_forward
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.options import Options
from scope_cli.batch.presence import HOST, Presence
from scope_cli.batch.results import write_results
from scope_cli.batch.rows import Row
from scope_cli.batch.start import Start, dry_run
from scope_cli.batch.states import RowStates
from scope_cli.batch.status import summary_lines
from scope_cli.console.phases import Phases
from scope_cli.console.signals import Interruption
from scope_cli.errors import (
    AuditError,
    BusyError,
    OutOfMemoryError,
    ScopeError,
    UsageError,
    is_out_of_memory,
)
from scope_cli.formats.base import PLAIN
from scope_cli.models.opening import opened_model
from scope_cli.models.sampling import in_words

if TYPE_CHECKING:
    from scope_cli.batch.local import LocalEngine
    from scope_cli.batch.on_ray import RayEngine
    from scope_cli.models.model import OpenedModel


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
    with opened_model(
        settings, options.offline, Phases(options.quiet, log=False), options.lanes or 1
    ) as opened:
        sampling, from_model = options.settings.with_model_sampling(opened.sampling)
    options = replace(options, settings=sampling, from_model=from_model)
    if words := in_words(from_model):
        options.say(f"sampling as the model asks: {words}")
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
        start.settings,
        start.job.hash,
        start.opened,
        board,
        limit=options.limit,
        fail_fast=options.fail_fast,
        max_seconds=options.row_timeout,
        states=states,
        checkpoint_every=options.checkpoint_every,
        from_model=options.from_model,
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


def make_board(options: Options, start: Start) -> LogBoard:
    console, geometry = Console(stderr=True), start.opened.geometry
    if not console.is_terminal or options.quiet:
        return LogBoard(console, start.ledger, options.log_every, options.quiet)
    form, itemsize = start.settings.profile.cache.form, start.opened.dtype.itemsize
    held, full = (one.policy_token_bytes(geometry, itemsize) for one in (form, PLAIN))
    return LiveBoard(console, start.ledger, (held, full))
