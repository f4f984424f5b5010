"""A ledger in; a table, JSON, or the last lines of a run out."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from scope_cli.batch.desk import Desk
from scope_cli.batch.fit import Memory
from scope_cli.batch.groups import Demand, Group
from scope_cli.batch.job import Changes, Planned
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.results import as_result
from scope_cli.batch.rows import Row
from scope_cli.batch.states import how_far
from scope_cli.console.safe import as_json, printable
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio, counted

UNFINISHED = ("waiting", "running", "interrupted")
COLOURS = {"done": "green", "failed": "red", "running": "yellow", "interrupted": "yellow", "waiting": "dim"}


def print_status(ledger: Ledger, out: Path) -> None:
    """A table of all rows on stdout, and the counts below it."""
    table = Table(box=None, pad_edge=False)
    for column, right in (
        ("prompt", False),
        ("state", False),
        ("tries", True),
        ("tokens", True),
        ("", False),
    ):
        table.add_column(column, justify="right" if right else "left", overflow="fold")
    for row in ledger.rows():
        table.add_row(
            Text(printable(row.id)),
            Text(row.state, COLOURS[row.state]),
            str(row.attempts),
            _tokens(row, out),
            Text(printable(_remark(row))),
        )
    console = Console()
    console.print(table)
    console.print(", ".join(f"{count:,} {state}" for state, count in ledger.counts().items() if count))


def status_json(ledger: Ledger, out: Path) -> str:
    """The counts, the job's settings and every row, without its text."""
    rows = [as_result(out, row) for row in ledger.rows()]
    for row in rows:
        del row["text"]
    for row, known in zip(rows, ledger.rows(), strict=True):
        row["goes_on_after"] = how_far(out, known.number) if known.state in UNFINISHED else None
    job: dict[str, Any] = {"counts": ledger.counts(), "settings": ledger.get("settings")}
    return as_json({**job, "groups": ledger.groups(), "rows": rows}, indent=2)


def _tokens(row: Row, out: Path) -> str:
    """Of a row that is half written, what would be gone on with."""
    if row.state in UNFINISHED and (written := how_far(out, row.number)):
        return f"{written:,} of {row.planned:,}"
    end = row.end
    return f"{end['output_tokens']:,}" if end else ""


def _remark(row: Row) -> str:
    if row.state == "failed":
        return row.error or ""
    if not row.end:
        return ""
    tokens, seconds = row.end["output_tokens"], row.end["decode_s"]
    rate = f", {as_rate(tokens / seconds)}" if seconds else ""
    return f"{row.end['reason']}, {as_duration(seconds)}{rate}"


def summary_lines(ledger: Ledger, desk: Desk, elapsed_s: float) -> Iterator[str]:
    """What one process says at its end."""
    counts, total = ledger.counts(), sum(ledger.counts().values())
    rate = as_rate(desk.tokens / elapsed_s) if elapsed_s else "-"
    yield f"done:      {counts['done']:,} of {counted(total, 'prompt')}"
    if desk.tokens:
        yield f"this run:  {desk.tokens:,} tokens in {as_duration(elapsed_s)}, {rate}"
    if desk.reused_prompt_tokens:
        copied = f"{desk.reused_prompt_tokens:,} of {desk.prompt_tokens:,}"
        yield f"copied:    {copied} prompt tokens, from prompts that begin alike"
    if waiting := counts["waiting"] + counts["interrupted"]:
        yield f"waiting:   {waiting:,}; the same command continues"
    if counts["running"]:
        yield f"running:   {counts['running']:,} in other processes"
    if desk.groups_run:
        yield from memory_lines(desk.groups_run, ledger.get("memory"), desk.peak_bytes)
    if counts["failed"]:
        yield (
            f"failed:    {counts['failed']:,}; `scope batch --status {desk.out}` says why, "
            "--retry-failed runs them again"
        )


def memory_lines(groups: list[Group], memory: dict[str, int], peak_bytes: int) -> Iterator[str]:
    known = Memory(**memory)
    largest = max(groups, key=known.planned)
    yield (
        f"lanes:     {largest.lanes} of {as_bytes(largest.lane_bytes)}, "
        f"{as_ratio(largest.padding_bytes, largest.cache_bytes)} padding"
    )
    planned = known.planned(largest) + known.base_bytes
    yield f"memory:    planned {as_bytes(planned)}, peak {as_bytes(peak_bytes)}"


def dry_run_lines(
    planned: Planned,
    groups: list[tuple[Group, list[Demand]]],
    memory: Memory,
    ledger: Ledger,
    changes: Changes,
) -> Iterator[str]:
    """What a run would do."""
    names = {row.number: row for row in planned.rows}
    already = ledger.counts()
    if already["done"]:
        yield f"done already: {already['done'] - changes.lost:,}"
    for group, demands in groups:
        yield (
            f"group {group.number}: {counted(group.rows, 'prompt')}, "
            f"{counted(group.lanes, 'lane')} of {as_bytes(group.lane_bytes)}, "
            f"{as_bytes(memory.planned(group))} with the weights and workspace, "
            f"{as_ratio(group.padding_bytes, group.cache_bytes)} padding"
        )
        for demand in demands:
            row = names[demand.number]
            size = f"{counted(row.prompt_tokens or 0, 'prompt token')}, up to {row.planned:,} new"
            yield f"  {row.id}: {size} -> {row.output}"
    for row in planned.rows:
        if row.state == "failed":
            yield f"would fail: {row.id}: {row.error}"
    yield f"free memory: {as_bytes(memory.free_bytes)}"
