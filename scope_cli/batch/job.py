"""Inputs and settings in, a planned ledger out: what is new, what has changed, what goes on.

Everything that decides a row's text is settled here and written down, so that a job that is stopped goes on
with the same numbers: prompt ids, seeds, and the group whose rectangle a row lies in.
"""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.batch.fit import Memory, choose_lanes, even
from scope_cli.batch.groups import Demand, Group, Order, alike_together, form_groups
from scope_cli.batch.inputs import Input, PromptFrame
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.outputs import PART, RECORD, OutputNames
from scope_cli.batch.reasons import UNSTOPPABLE, in_words, reason_and_detail
from scope_cli.batch.rows import Row
from scope_cli.batch.work import encode, packed, seed_of, settings_of
from scope_cli.batch.writer import OutputError, publish
from scope_cli.console.safe import printable
from scope_cli.errors import ScopeError, UsageError
from scope_cli.models.registry import from_anywhere
from scope_cli.settings.load import LoadedProfile
from scope_cli.units import counted

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

Say = Callable[[str], None]


@dataclass(frozen=True)
class JobSettings:
    """What decides the texts of a job; it does not change while the job goes on."""

    settings: LoadedProfile
    frame: PromptFrame
    lanes: int | None  # None: as many as fit
    order: Order
    runs_on: str  # "cpu float32": the same profile gives other numbers elsewhere
    max_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        profile = self.settings.profile.as_dict()
        del profile["description"]
        profile["model"]["name"] = from_anywhere(profile["model"]["name"])
        return {
            **profile,
            "prompt_template": self.frame.template,
            "suffix": self.frame.suffix,
            "lanes": self.lanes or "auto",
            "order": self.order,
            "runs_on": self.runs_on,
            "row_timeout": self.max_seconds,
        }

    @property
    def hash(self) -> str:
        return hashlib.sha256(json.dumps(self.as_dict(), sort_keys=True).encode()).hexdigest()[:16]


# What may change while a job goes on: rows keep what they were planned with, and no text promises these.
FREE = ("model.compile", "model.threads", "order")


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """'decode.budget: 2048 before, 512 now', one for each setting that differs."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {json.dumps(old)} before, {json.dumps(new)} now"


def check_settings(ledger: Ledger, job: JobSettings, accept: bool, say: Say = lambda line: None) -> bool:
    """Is what is not done to be planned anew, with other settings than before?

    Settings that decide a text are refused, with what differs, unless they are accepted. The others are told.
    """
    before, now = ledger.get("settings"), job.as_dict()
    if before is None:
        return False
    before["model"]["name"] = from_anywhere(before["model"]["name"])  # jobs from before kept it as typed
    if job.lanes is None:  # auto takes what was chosen
        now["lanes"] = before["lanes"]
    changed = list(differences(before, now))
    free = [line for line in changed if line.startswith(tuple(f"{key}: " for key in FREE))]
    if len(changed) > len(free) and not accept:
        raise UsageError(
            "this job was started with other settings:\n  "
            + "\n  ".join(line for line in changed if line not in free),
            "repeat the first command; --accept-changed-profile runs what is not done with the new ones, "
            "--restart begins again",
        )
    if accept:
        return bool(changed)
    for line in free:
        if not line.startswith("model.threads"):
            say(f"note: {line}: what is planned already keeps it; --accept-changed-profile plans it again")
    return False


@dataclass
class Changes:
    """What the inputs turned out to be, beside what the ledger knew."""

    fresh: list[tuple[Row, Input]] = field(default_factory=list)  # new or changed: to be tokenised
    revived: list[int] = field(default_factory=list)  # planned already, and to be run again
    gone: list[Row] = field(default_factory=list)  # not done, and no longer among the inputs
    new: int = 0
    changed: int = 0
    lost: int = 0  # done once, but the output is not there any more
    found: int = 0
    models: Counter[str] = field(default_factory=Counter)  # that lines ask for, and how many do

    def in_words(self) -> Iterator[str]:
        for model, count in self.models.items():
            yield f"note: {counted(count, 'line')} with the model {model}, which is not looked at"
        for count, thing, one, many in (
            (self.changed, "prompt", "has changed and is run again", "have changed and are run again"),
            (self.lost, "output", "is gone and is written again", "are gone and are written again"),
            (len(self.gone), "prompt", "is gone and leaves the job", "are gone and leave the job"),
        ):
            if count:
                yield f"note: {counted(count, thing)} {one if count == 1 else many}"


def compare(
    ledger: Ledger,
    inputs: Iterable[Input],
    out: Path,
    *,
    as_lines: bool,
    retry_failed: bool = False,
    settings_changed: bool = False,
    restart: bool = False,
) -> Changes:
    """Which inputs are new, which have changed, which are to be run again for another reason.

    restart: as if the ledger were empty
    """
    known = {} if restart else {row.id: row for row in ledger.rows()}
    names = OutputNames(row.output for row in known.values())
    number = max((row.number for row in known.values()), default=-1)
    found, changes = set[str](), Changes()
    for one in inputs:
        assert one.id not in found, f"two inputs are called {one.id}"
        found.add(one.id)
        if one.model:
            changes.models[one.model] += 1
        row = known.get(one.id)
        if row is None:
            number += 1
            changes.new += 1
            output = names.for_line(one.id) if as_lines else names.for_file(one.id)
            row = Row(number, one.id, one.source, output, one.content_hash)
            changes.fresh.append((row, one))
        elif row.content_hash != one.content_hash:
            changes.changed += row.content_hash != ""  # else it was mended, which was told
            changes.fresh.append((row, one))
        elif row.state == "done":
            if not (out / row.output).exists():
                changes.lost += 1
                changes.revived.append(row.number)
        elif settings_changed or (row.state == "failed" and retry_failed):
            if row.prompt_tokens is None or settings_changed:  # it failed before it was planned
                changes.fresh.append((row, one))
            else:
                changes.revived.append(row.number)
    changes.found = len(found)
    changes.gone = [row for row in known.values() if row.id not in found and row.state != "done"]
    return changes


@dataclass
class Planned:
    """Fresh rows, tokenised: with prompt ids, or failed with the reason."""

    rows: list[Row] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)
    notes: Counter[str] = field(default_factory=Counter)  # what there is to say of prompts, and of how many


def tokenise(
    opened: "OpenedModel", job: JobSettings, fresh: Iterable[tuple[Row, Input]]
) -> Iterator[Planned]:
    """Grows row by row, so that whoever waits can be told how far it is."""
    from scope_cli.engine.run_plan import make_plan

    planned, job_seed = Planned(), job.settings.profile.sampling.seed
    for row, found in fresh:
        base = Row(row.number, row.id, found.source, row.output, found.content_hash, meta=found.meta)
        try:
            if found.problem:
                raise UsageError(found.problem)
            seed = found.sampling.get("seed", seed_of(row.id, job_seed))
            base = replace(base, sampling=found.sampling, seed=seed)
            own = settings_of(job.settings, found.sampling, seed)
            prompt = encode(opened, job.settings, found, job.frame)
            ids = prompt.ids
            plan = make_plan(own, opened.geometry, len(ids))
            check_row(own)
            opened.stops(own.profile.sampling)
            demand = Demand.of(row.number, plan, opened.target, own.profile.prefill.chunk, ids)
            ready = replace(base, prompt_ids=packed(ids), prompt_tokens=len(ids), planned=plan.max_new_tokens)
        except UNSTOPPABLE:
            raise
        except BaseException as error:  # a template's TypeError, a panic in Rust: whatever it is
            told = str(error) if isinstance(error, ScopeError) else in_words(error)
            reason, detail = reason_and_detail(told)
            planned.rows.append(replace(base, state="failed", error=reason, detail=detail or None))
        else:
            planned.rows.append(ready)
            planned.notes.update(prompt.notes)
            planned.demands.append(demand)
        yield planned


def check_row(settings: LoadedProfile) -> None:
    """Settings that are fine alone and not together, for one row's own sampling."""
    problem = next(settings.profile.problems(), None)
    if problem is not None:
        raise UsageError(": ".join(problem))


def commit(
    ledger: Ledger,
    job: JobSettings,
    changes: Changes,
    planned: Planned,
    groups: list[tuple[Group, list[Demand]]],
    facts: dict[str, Any],
    restart: bool = False,
) -> None:
    """One transaction: settings, rows, groups. Killed before it, the next start does it all again.

    restart: what the ledger held before goes in the same moment
    """
    place = {
        demand.number: (group.number, turn)
        for group, demands in groups
        for turn, demand in enumerate(demands)
    }
    with ledger.transaction():
        if restart:
            ledger.forget()
        for row in planned.rows:
            group_number, turn = place.get(row.number, (None, None))
            ledger.put(replace(row, group_number=group_number, turn=turn))
        for number in changes.revived:
            ledger.change(number, state="waiting", error=None, detail=None, record=None)
        for row in changes.gone:
            ledger.remove(row.number)
        ledger.add_groups(group.as_dict() for group, _ in groups)
        ledger.drop_empty_groups()
        ledger.set(settings=job.as_dict(), settings_hash=job.hash, **facts)


def refuse_foreign_files(
    out: Path, rows: Iterable[Row], sources: Iterable[Path], lost: bool = False, own: set[str] | None = None
) -> None:
    """Nothing is overwritten that this job has not written itself, its inputs least of all.

    lost: the ledger has just begun, so that a text with a record is that of a job that has lost its ledger
    own: of a job that begins again, the outputs that its ledger knows; a record is as good
    """
    inputs = {os.path.realpath(path) for path in sources}  # Path.resolve raises where links go in a circle
    for row in rows:
        path = out / row.output
        name = printable(str(path))
        if os.path.realpath(path) in inputs:
            raise UsageError(f"{name} is a prompt, and would be overwritten", "choose another --output-dir")
        if not os.path.lexists(path):
            continue
        written = is_recorded(path, row.id)
        if own is not None and (written or row.output in own):
            continue
        if lost and written:
            raise UsageError(
                f"{name} was written by a job whose ledger is not there any more, or empty",
                "choose another --output-dir, or --restart to write all of it again",
            )
        raise UsageError(
            f"{name} exists, and this job has not written it", "move it away, or choose another --output-dir"
        )


def is_recorded(path: Path, row_id: str) -> bool:
    """Does the record beside a text say that it is that row's?"""
    try:
        record = json.loads(path.with_name(path.name + RECORD).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(record, dict) and record.get("id") == row_id


def roll_forward(ledger: Ledger, out: Path, say: Say = lambda line: None) -> None:
    """What the ledger calls done and a kill left as NAME.part becomes NAME, or has failed."""
    for row in ledger.rows("done"):
        if (out / f"{row.output}{PART}").exists() and row.record is not None:
            try:
                publish(out, row.output, row.record)
            except OutputError as error:
                ledger.withdraw(row.number, str(error))
                say(f"failed: {row.id}: {error}")


def new_groups(
    planned: Planned, opened: "OpenedModel", job: JobSettings, memory: Memory, first: int
) -> list[tuple[Group, list[Demand]]]:
    from scope_cli.models.choices import compiles

    formed = form_groups(planned.demands, opened.geometry, opened.dtype.itemsize, job.order, first)
    result = []
    for group, rows in formed:
        group = choose_lanes(group, job.lanes, memory, opened.target)
        if job.order == "longest" and even(group.lanes) == group.lanes:  # a text is the same in any row
            rows = alike_together(rows)
        steps = group.planned_tokens // group.lanes
        compiled = compiles(job.settings.profile.model.compile, opened.device.type, steps)
        result.append((replace(group, compiled=compiled), rows))
    return result
