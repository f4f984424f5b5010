"""Results in, the same pictures in characters out, as wide as the terminal."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rich.text import Text

from scope_cli.measure.palette import styles
from scope_cli.measure.profiling.plots import (
    Curve,
    measured_curve,
    planned_curve,
    scale_of,
    smoothed,
    with_maps,
)
from scope_cli.measure.profiling.report import PlannedProfile
from scope_cli.measure.profiling.result import UNWRITTEN, MemoryMap, Result

SHADES = " ░▒▓█"  # nobody; up to a quarter, half, three quarters, all of the KV heads
MARKERS = "○●▲◆■△▼◇□▽★☆"  # told apart without colour; the places are the palette's
COLOURS = ("white", "blue", "red", "green", "magenta", "yellow", "cyan")
WIDEST, HEIGHT, MARGIN = 100, 12, 10


@dataclass(frozen=True)
class Trace:
    label: str
    x: Sequence[int]
    y: list[float]
    marker: str
    colour: str


def draw(results: list[Result], width: int) -> list[Text]:
    """KV memory, speed, and a memory map of each result."""
    width = min(width, WIDEST)
    speed = {one.label: (one.speed.positions, smoothed(one.speed.tokens_per_s)) for one in results}
    parts = [
        cache_chart([measured_curve(one) for one in results], width),
        chart("Speed of the uncompiled step, tokens/s", lines_of(speed), width),
    ]
    return parts + [memory_map(one, one.map, width) for one in with_maps(results) if one.map is not None]


def draw_plans(planned: list[PlannedProfile], width: int) -> list[Text]:
    """KV memory of what would be run."""
    return [cache_chart([planned_curve(one) for one in planned], min(width, WIDEST))]


def cache_chart(curves: list[Curve], width: int) -> Text:
    scale, unit = scale_of(max(max(*one.held_bytes, *one.full_bytes) for one in curves))
    longest = max(curves, key=lambda one: one.full_bytes[-1])
    full = Trace(
        "a cache that forgets nothing",
        longest.n,
        [b / scale for b in longest.full_bytes],
        "·",
        "bright_black",
    )
    held = {one.label: (one.n, [count / scale for count in one.held_bytes]) for one in curves}
    return chart(f"Keys and values held, {unit}", [full, *lines_of(held)], width)


def lines_of(points: Mapping[str, tuple[Sequence[int], list[float]]]) -> list[Trace]:
    places = {name: look.place for name, look in styles(points).items()}
    return [
        Trace(name, x, y, MARKERS[places[name] % len(MARKERS)], COLOURS[places[name] % len(COLOURS)])
        for name, (x, y) in points.items()
    ]


def chart(title: str, lines: list[Trace], width: int) -> Text:
    """One column a stretch of the output, one mark a line in each; later lines lie over earlier ones."""
    columns = max(10, width - MARGIN)
    drawn = [line for line in lines if line.x]
    last = max((line.x[-1] for line in drawn), default=1)
    most = max((max(line.y) for line in drawn), default=0.0) or 1.0
    cells: list[list[tuple[str, str]]] = [[(" ", "")] * columns for _ in range(HEIGHT)]
    for line in drawn:
        for column in range(columns):
            at = last * (column + 0.5) / columns
            nearest = min(max(0, bisect(line.x, at) - 1), len(line.x) - 1)
            row = HEIGHT - 1 - round(line.y[nearest] / most * (HEIGHT - 1))
            cells[row][column] = (line.marker, line.colour)
    text = Text(f"{title}\n")
    for row, marks in enumerate(cells):
        value = f"{most * (HEIGHT - 1 - row) / (HEIGHT - 1):,.4g}" if row in (0, HEIGHT // 2) else ""
        text.append(f"{value:>{MARGIN - 2}} │")
        for mark, colour in marks:
            text.append(mark, colour)
        text.append("\n")
    text.append(
        f"{'0':>{MARGIN - 2}} └{'─' * columns}\n{'':>{MARGIN}}{'output tokens':<{columns - 12}}{last:>12,}\n"
    )
    for line in lines:
        text.append(f"{'':>{MARGIN}}")
        text.append(line.marker, line.colour)
        text.append(f" {line.label}\n")
    return text


def memory_map(result: Result, what: MemoryMap, width: int) -> Text:
    """Positions from left to right, time downwards; a character is the mean over layers in its place."""
    import numpy as np

    columns, end = max(10, width - MARGIN), what.edges[-1]
    places = (np.arange(columns) + 0.5) * end / columns
    bins = np.searchsorted(what.edges, places, side="right") - 1
    values = what.values()[:, :, bins]  # [times, layers, columns]
    rows = np.linspace(0, len(what.n) - 1, min(HEIGHT + 2, len(what.n))).round().astype(int)
    shades = f"{SHADES[1:]} up to 25, 50, 75, 100% of the KV heads"
    lines = [f"Memory map, {result.label}: positions still held ({shades})"]
    for row in rows:
        mean, seen = values[row].mean(0), values[row, 0] != UNWRITTEN
        shares = zip(mean, seen, strict=True)
        cells = [SHADES[int(np.ceil(share / 25))] if written else " " for share, written in shares]
        lines.append(f"{what.n[row]:>{MARGIN - 2},} │{''.join(cells)}".rstrip())
    edge = round(columns * what.prompt_tokens / end)
    prompt, output = "prompt"[:edge], "output"[: max(0, columns - edge - 1)]
    lines.append(f"{'tokens':>{MARGIN - 2}} └{prompt:─<{edge}}┴{output:─<{max(0, columns - edge - 1)}}")
    return Text("\n".join(lines) + "\n")
