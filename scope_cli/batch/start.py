"""Options and inputs in, a planned ledger out, and the groups that fit the memory there is now."""

import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scope_cli.batch.database import NAME as LEDGER
from scope_cli.batch.desk import Desk
from scope_cli.batch.fit import Memory, check_weights, even
from scope_cli.batch.groups import Demand, Group
from scope_cli.batch.inputs import Input
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
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.options import Options
from scope_cli.batch.rows import DAMAGED
from scope_cli.batch.states import state_file, sweep_states
from scope_cli.batch.status import dry_run_lines
from scope_cli.console.safe import printable
from scope_cli.console.signals import Interruption
from scope_cli.errors import ModelError
from scope_cli.files import sweep
from scope_cli.settings.load import LoadedProfile
from scope_cli.units import as_bytes, counted

if TYPE_CHECKING:
    from scope_cli.batch.local import LocalEngine
    from scope_cli.batch.on_ray import RayEngine
    from scope_cli.models.model import OpenedModel

MOST_NOTES = 10  # of one start
TELL_EVERY_S = 2.0  # while many prompts are read


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

    @property
    def settings(self) -> LoadedProfile:
        """In force: with the slots to which `auto` has come for this job, whoever works on it."""
        slots = self.ledger.get("slots")
        return self.job.settings if slots is None else self.job.settings.with_slots(slots)

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
        slots = None if restart or changed else ledger.get("slots")
        settings = self.job.settings if slots is None else self.job.settings.with_slots(slots)
        planned = self._tokenise(changes, settings)
        if self.interruption():
            return
        memory, groups = None if restart else ledger.get("memory"), []
        if planned.demands:
            first = 0 if restart else max((group["number"] for group in ledger.groups()), default=-1) + 1
            now = by_sizes = self.memory(memory, planned.demands)
            groups = new_groups(planned, self.opened, self.job, now, first)  # before any weight is read
            if settings.open_slots:
                settings, why = self.engine.slots(settings)
                slots = "plain" if why else "int8"
                if why:  # which takes more than was planned
                    options.say(f"note: {why}")
                    planned = self._tokenise(changes, settings)
                    now = by_sizes = self.memory(memory, planned.demands)
                    groups = new_groups(planned, self.opened, self.job, now, first)
            if memory is None:
                longest = max(demand.prompt_tokens for demand in planned.demands)
                output = max(demand.planned_tokens for demand in planned.demands)
                now = self.engine.measure(settings, longest, output).at_least(by_sizes)
                groups = new_groups(planned, self.opened, self.job, now, first)
            memory = now.as_dict()
        for note, count in planned.notes.most_common(MOST_NOTES):
            options.say(f"note: {counted(count, 'prompt')}: {note}")
        for row in planned.rows:
            if row.state == "failed":
                options.complain(f"failed: {row.id}: {row.error}")
        commit(ledger, self.job, changes, planned, groups, {"memory": memory, "slots": slots}, restart)
        sweep_all(ledger, out)
        if restart:
            shutil.rmtree(state_file(out, 0).parent, ignore_errors=True)
        sweep_states(ledger, out)

    def _tokenise(self, changes: Changes, settings: LoadedProfile) -> Planned:
        planned, told = Planned(), time.monotonic() + TELL_EVERY_S
        for planned in tokenise(self.opened, replace(self.job, settings=settings), changes.fresh):
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


def sweep_all(ledger: Ledger, out: Path) -> None:
    """What a killed process left half written beside its outputs."""
    for folder in {(out / row.output).parent for row in ledger.rows()} | {out}:
        sweep(folder)


def dry_run(options: Options, job: JobSettings, opened: "OpenedModel", inputs: Iterator[Input]) -> int:
    """Everything up to the plan, and nothing written."""
    from scope_cli.engine.slots_check import computed
    from scope_cli.machine.memory import free_bytes

    foreseen = replace(job, settings=computed(opened).foreseen(job.settings))
    with tempfile.TemporaryDirectory() as nowhere:
        there = (options.out / LEDGER).is_file() and not options.restart
        ledger = Ledger(options.out if there else Path(nowhere), read_only=there)
        changed = check_settings(ledger, job, options.accept_changed)
        changes = compare(
            ledger, inputs, options.out, as_lines=options.as_lines,
            retry_failed=options.retry_failed, settings_changed=changed,
        )  # fmt: skip
        planned = Planned()
        for planned in tokenise(opened, foreseen, changes.fresh):  # noqa: B007  the last one has all
            pass
        memory = Memory.planned_for(planned.demands, free_bytes(opened.device), opened.weight_bytes)
        groups = new_groups(planned, opened, job, memory, first=0)
        for line in dry_run_lines(planned, groups, memory, ledger, changes):
            print(printable(line))
        ledger.close()
    return 0
