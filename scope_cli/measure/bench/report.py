"""Rows of measurements in; lines of figures, a table, JSON and CSV out. No torch."""

import csv
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from statistics import median
from typing import IO, Any

import scope_cli
from scope_cli.console.tables import Table
from scope_cli.machine.description import machine
from scope_cli.measure.bench.contest import Course, Measured, Standing
from scope_cli.units import as_bytes, as_ratio


@dataclass(frozen=True)
class Figures:
    """One contender at one position. A token per lane is a step; ratios are above 1 where it is faster."""

    contender: str
    position: int
    lanes: int
    tokens_per_s: float  # all lanes together
    step_ms: float
    step_ms_least: float
    step_ms_most: float
    ratio: float | None  # of tokens/s to the baseline's, in the same round; the median
    ratio_least: float | None
    ratio_most: float | None
    prefill_tokens_per_s: float | None
    prefill_ratio: float | None
    prefill_peak_bytes: int  # beyond the weights
    decode_peak_bytes: int
    held_bytes: int | None
    read_bytes: int | None  # by the attention of a step
    moved_bytes: int | None  # in the bursts that were counted
    share_of_limit: float | None  # 1: a step takes what reading its bytes takes


def lines_of(
    rows: list[Standing], course: Course, baseline: str, bandwidth: float | None = None
) -> list[Figures]:
    """bandwidth: bytes per second that the memory gives, where it was measured"""
    base = next(row for row in rows if row.name == baseline)
    prompt = len(course.prompt)
    return [
        _line(row, one, base, prompt, bandwidth)
        for position in course.positions
        for row in rows
        if (one := row.at(position)) is not None
    ]


def _line(row: Standing, one: Measured, base: Standing, prompt: int, bandwidth: float | None) -> Figures:
    step_ms = median(one.step_ms)
    against = base.at(one.position)
    ratios = []
    if against is not None:
        ratios = [
            (theirs / base.lanes) / (ours / row.lanes)
            for ours, theirs in zip(one.step_ms, against.step_ms, strict=False)
        ]
    reads, base_reads = _reads(row), _reads(base)
    prefill = row.lanes * prompt / median(reads) if reads else None
    base_prefill = base.lanes * prompt / median(base_reads) if base_reads else None
    share = None
    if bandwidth and row.weight_bytes and one.read_bytes is not None:
        share = (row.weight_bytes + one.read_bytes) / bandwidth / (step_ms / 1000)
    return Figures(
        contender=row.name,
        position=one.position,
        lanes=row.lanes,
        tokens_per_s=1000 * row.lanes / step_ms,
        step_ms=step_ms,
        step_ms_least=min(one.step_ms),
        step_ms_most=max(one.step_ms),
        ratio=median(ratios) if ratios else None,
        ratio_least=min(ratios, default=None),
        ratio_most=max(ratios, default=None),
        prefill_tokens_per_s=prefill,
        prefill_ratio=prefill / base_prefill if prefill and base_prefill else None,
        prefill_peak_bytes=max((m.prefill_peak_bytes for m in row.positions), default=0),
        decode_peak_bytes=one.decode_peak_bytes,
        held_bytes=one.held_bytes,
        read_bytes=one.read_bytes,
        moved_bytes=one.moved_bytes,
        share_of_limit=share,
    )


def _reads(row: Standing) -> list[float]:
    return [took for measured in row.positions for took in measured.read_s]


def agreements(rows: list[Standing]) -> dict[str, tuple[int, int]]:
    """How often a contender's next token is that of the first exact one, fed the same text: (same, asked)."""
    reference = next((row for row in rows if row.exact and row.positions), None)
    found: dict[str, tuple[int, int]] = {}
    for row in rows if reference else []:
        assert reference is not None
        lanes = row.lanes if row.lanes == reference.lanes else 1  # the first lane's prompt is always the same
        pairs = [
            (ours, theirs)
            for one in row.positions
            for other in reference.positions
            if one.position == other.position
            for mine, their in zip(one.next_ids, other.next_ids, strict=False)
            for ours, theirs in zip(mine[:lanes], their[:lanes], strict=True)
        ]
        found[row.name] = (sum(ours == theirs for ours, theirs in pairs), len(pairs))
    return found


def remarks(rows: list[Standing]) -> list[str]:
    """What a reader has to know before believing a table: failures, and who did not compute the same."""
    lines = [f"{row.name} failed: {row.failed}" for row in rows if row.failed]
    found = agreements(rows)
    for row in rows:
        same, asked = found.get(row.name, (0, 0))
        if asked:
            wrong = row.exact and same < asked
            what = "an exact contender that differs" if wrong else "exact" if row.exact else "not exact"
            lines.append(f"{row.name}: {same} of {asked} next tokens as the first exact contender ({what})")
    return lines


def tables_of(lines: list[Figures], course: Course) -> list[Table]:
    """What a person reads: how fast, then how many bytes."""
    return [_table(lines, columns, course) for columns in (SPEED, PROMPT_AND_BYTES)]


def verdict(lines: list[Figures], baseline: str) -> str:
    """Who is fastest at the last position where the baseline was measured, and what it holds; '' if alone."""
    last = max((line.position for line in lines if line.contender == baseline), default=None)
    there = {line.contender: line for line in lines if line.position == last and line.ratio is not None}
    others = [line for name, line in there.items() if name != baseline]
    if not others:
        return ""
    best = max(others, key=lambda line: line.ratio or 0)
    name = best.contender if best.lanes == 1 else f"{best.contender} ({best.lanes} lanes)"
    said = (
        f"at position {best.position:,} {name} writes {best.ratio:.2f} times the tokens/s of {baseline} "
        f"({best.ratio_least:.2f} to {best.ratio_most:.2f} in single rounds"
    )
    contradict = (best.ratio_least or 0) < 1 < (best.ratio_most or 0)
    said += ", which contradict each other)" if contradict else ")"
    theirs = there[baseline].held_bytes
    if best.held_bytes is not None and theirs:
        ours, others_lanes = best.held_bytes / best.lanes, theirs / there[baseline].lanes
        said += f", holding {as_bytes(ours)} a text where {baseline} holds {as_bytes(others_lanes)}"
        said += f" ({as_ratio(ours, others_lanes)})"
    return said


def _size(count: int | None) -> str:
    return "-" if count is None else as_bytes(count)


def _spread(middle: float | None, least: float | None, most: float | None, digits: int) -> str:
    if middle is None:
        return "-"
    return f"{middle:,.{digits}f} ({least:,.{digits}f} to {most:,.{digits}f})"


Column = Callable[[Figures], str]
SPEED: dict[str, Column] = {
    "tokens/s": lambda line: f"{line.tokens_per_s:,.1f}",
    "ms/step": lambda line: _spread(line.step_ms, line.step_ms_least, line.step_ms_most, 1),
    "x": lambda line: _spread(line.ratio, line.ratio_least, line.ratio_most, 2),
    "of limit": lambda line: f"{100 * line.share_of_limit:.0f}%" if line.share_of_limit else "-",
}
PROMPT_AND_BYTES: dict[str, Column] = {
    "prompt tokens/s": lambda line: f"{line.prefill_tokens_per_s:,.0f}" if line.prefill_tokens_per_s else "-",
    "peak prefill": lambda line: _size(line.prefill_peak_bytes),
    "peak decode": lambda line: _size(line.decode_peak_bytes),
    "held": lambda line: _size(line.held_bytes),
    "read/step": lambda line: _size(line.read_bytes),
    "moved": lambda line: _size(line.moved_bytes),
}


def _table(lines: list[Figures], columns: dict[str, Column], course: Course) -> Table:
    rows = []
    for position in course.positions:
        for line in lines:
            if line.position == position:
                name = line.contender if line.lanes == 1 else f"{line.contender}, {line.lanes} lanes"
                rows.append([f"{position:,}", name, *(column(line) for column in columns.values())])
    return Table(["position", "contender", *columns], rows, names=2)


def report(
    lines: list[Figures], rows: list[Standing], course: Course, baseline: str, command: list[str]
) -> dict[str, Any]:
    """Everything: the figures, each burst behind them, what was run and on what."""
    asked = {name: value for name, value in asdict(course).items() if name not in ("prompt", "known")}
    return {
        "command": command,
        "machine": machine(),
        "load_average": [round(one, 2) for one in os.getloadavg()],
        "scope": scope_cli.__version__,
        "course": asked,
        "baseline": baseline,
        "lines": [asdict(line) for line in lines],
        "contenders": [asdict(row) for row in rows],
        "remarks": remarks(rows),
    }


def write_csv(file: IO[str], lines: list[Figures], rows: list[Standing]) -> None:
    """A row per contender and position; one that failed is a row with its reason."""
    names = [one.name for one in fields(Figures)]
    writer = csv.DictWriter(file, [*names, "failed"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({**asdict(line), "failed": ""} for line in lines)
    writer.writerows({"contender": row.name, "failed": row.failed} for row in rows if row.failed)
