"""Inputs and settings in, a planned ledger out: what is new, what has changed, what goes on.

Everything that decides a row's text is settled here and written down, so that a job that is stopped goes on
with the same numbers: prompt ids, seeds, and the group whose rectangle a row lies in.
"""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.batch.fit import Memory, choose_lanes
from scope_cli.batch.groups import Demand, Group, Order, form_groups
from scope_cli.batch.inputs import Frame, Input
from scope_cli.batch.ledger import Ledger, Row
from scope_cli.batch.outputs import PART, OutputNames
from scope_cli.batch.work import encode, packed, seed_of, settings_of
from scope_cli.batch.writer import publish
from scope_cli.errors import UsageError
from scope_cli.profile import LoadedProfile
from scope_cli.safe import printable

if TYPE_CHECKING:
    from scope_cli.model import OpenedModel


@dataclass(frozen=True)
class JobSettings:
    """What decides the texts of a job; it does not change while the job goes on."""

    settings: LoadedProfile
    frame: Frame
    lanes: int | None  # None: as many as fit
    order: Order
    runs_on: str  # "cpu float32": the same profile gives other numbers elsewhere
    max_seconds: float | None = None

    def as_dict(self) -> dict[str, Any]:
        profile = self.settings.profile.as_dict()
        del profile["description"]
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


def differences(before: dict[str, Any], now: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """'decode.budget: 2048 before, 512 now', one for each setting that differs."""
    for key in sorted(before.keys() | now.keys()):
        old, new = before.get(key), now.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            yield from differences(old, new, f"{prefix}{key}.")
        elif old != new:
            yield f"{prefix}{key}: {json.dumps(old)} before, {json.dumps(new)} now"


def check_settings(ledger: Ledger, job: JobSettings, accept: bool) -> bool:
    """Is this job run with other settings than before? Refused, with what differs, unless accepted."""
    before, now = ledger.get("settings"), job.as_dict()
    if before is None:
        return False
    if job.lanes is None:  # auto takes what was chosen
        now["lanes"] = before["lanes"]
    changed = list(differences(before, now))
    if changed and not accept:
        raise UsageError(
            "this job was started with other settings:\n  " + "\n  ".join(changed),
            "repeat the first command; --accept-changed-profile runs what is not done with the new ones, "
            "--restart begins again",
        )
    return bool(changed)


@dataclass
class Changes:
    """What the inputs turned out to be, beside what the ledger knew."""

    fresh: list[tuple[Row, Input]] = field(default_factory=list)  # new or changed: to be tokenised
    revived: list[int] = field(default_factory=list)  # planned already, and to be run again
    gone: list[Row] = field(default_factory=list)  # not done, and no longer among the inputs
    new: int = 0
    changed: int = 0
    lost: int = 0  # done once, but the output is not there any more

    def in_words(self) -> Iterator[str]:
        if self.changed:
            yield f"note: {self.changed:,} prompts have changed and are run again"
        if self.lost:
            yield f"note: {self.lost:,} outputs are gone and are written again"
        if self.gone:
            yield f"note: {len(self.gone):,} prompts are gone and leave the job"


def compare(
    ledger: Ledger,
    inputs: Iterable[Input],
    out: Path,
    *,
    as_lines: bool,
    retry_failed: bool = False,
    settings_changed: bool = False,
) -> Changes:
    """Which inputs are new, which have changed, which are to be run again for another reason."""
    known = {row.id: row for row in ledger.rows()}
    names = OutputNames(row.output for row in known.values())
    number = max((row.number for row in known.values()), default=-1)
    found, changes = set[str](), Changes()
    for one in inputs:
        found.add(one.id)
        row = known.get(one.id)
        if row is None:
            number += 1
            changes.new += 1
            output = names.for_line(one.id) if as_lines else names.for_file(one.id)
            row = Row(number, one.id, one.source, output, one.content_hash)
            changes.fresh.append((row, one))
        elif row.content_hash != one.content_hash:
            changes.changed += 1
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
    changes.gone = [row for row in known.values() if row.id not in found and row.state != "done"]
    return changes


@dataclass
class Planned:
    """Fresh rows, tokenised: with prompt ids, or failed with the reason."""

    rows: list[Row] = field(default_factory=list)
    demands: list[Demand] = field(default_factory=list)


def tokenise(
    opened: "OpenedModel", job: JobSettings, fresh: Iterable[tuple[Row, Input]]
) -> Iterator[Planned]:
    """Grows row by row, so that whoever waits can be told how far it is."""
    from scope_cli.generate import make_plan

    planned, job_seed = Planned(), job.settings.profile.sampling.seed
    for row, found in fresh:
        seed = found.sampling.get("seed", seed_of(row.id, job_seed))
        base = Row(
            row.number, row.id, found.source, row.output, found.content_hash,
            sampling=found.sampling, meta=found.meta, seed=seed,
        )  # fmt: skip
        try:
            if found.problem:
                raise UsageError(found.problem)
            assert base.seed is not None, "it was just made"
            own = settings_of(job.settings, found.sampling, base.seed)
            ids = encode(opened, job.settings, found, job.frame)
            plan = make_plan(own, opened.geometry, len(ids))
            check_row(own)
            opened.stops(own.profile.sampling)
        except UsageError as error:
            planned.rows.append(replace(base, state="failed", error=str(error)))
        else:
            planned.rows.append(
                replace(base, prompt_ids=packed(ids), prompt_tokens=len(ids), planned=plan.max_new_tokens)
            )
            itemsize = opened.dtype.itemsize
            planned.demands.append(Demand.of(row.number, plan, opened.geometry, itemsize))
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
) -> None:
    """One transaction: settings, rows, groups. Killed before it, the next start does it all again."""
    place = {
        demand.number: (group.number, turn)
        for group, demands in groups
        for turn, demand in enumerate(demands)
    }
    with ledger.transaction():
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


def refuse_foreign_files(out: Path, outputs: Iterable[str], sources: Iterable[Path]) -> None:
    """Nothing is overwritten that this job has not written itself, its inputs least of all."""
    inputs = {os.path.realpath(path) for path in sources}  # Path.resolve raises where links go in a circle
    for output in outputs:
        path = out / output
        if os.path.realpath(path) in inputs:
            raise UsageError(
                f"{printable(str(path))} is a prompt, and would be overwritten", "choose another --output-dir"
            )
        if path.exists():
            raise UsageError(
                f"{printable(str(path))} exists, and this job has not written it",
                "choose another --output-dir, or --restart to overwrite",
            )


def roll_forward(ledger: Ledger, out: Path) -> None:
    """What the ledger calls done and a kill left as NAME.part becomes NAME."""
    for row in ledger.rows("done"):
        if (out / f"{row.output}{PART}").exists() and row.record is not None:
            publish(out, row.output, row.record)


def new_groups(
    planned: Planned, opened: "OpenedModel", job: JobSettings, memory: Memory, first: int
) -> list[tuple[Group, list[Demand]]]:
    from scope_cli.step import compiles

    formed = form_groups(planned.demands, opened.geometry, opened.dtype.itemsize, job.order, first)
    result = []
    for group, rows in formed:
        group = choose_lanes(group, job.lanes, memory)
        steps = group.planned_tokens // group.lanes
        compiled = compiles(job.settings.profile.model.compile, opened.device, steps)
        result.append((replace(group, compiled=compiled), rows))
    return result
