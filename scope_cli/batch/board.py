"""News of a job in; a live picture for a person at a terminal, or plain lines for a pipe or a log.

Both write to stderr: stdout is for what was asked for.
"""

import time
from collections.abc import Iterator

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from scope_cli.batch.desk import Running
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.progress import Pace
from scope_cli.batch.rows import Row
from scope_cli.console.safe import printable
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio, counted

REFRESH_S = 1 / 4
NAME_CELLS = 40


class LogBoard:
    """One line when a row begins and ends, and one on the whole job every `every_s` seconds."""

    def __init__(self, console: Console, ledger: Ledger, every_s: float = 30.0, quiet: bool = False) -> None:
        self._console, self._ledger, self._every_s, self._quiet = console, ledger, every_s, quiet
        self.progress = Pace(ledger.counts())
        self._seen: dict[int, Running] = {}
        self._told: dict[int, int] = {}  # tokens of a row that the progress has counted
        self._next = time.monotonic() + every_s

    def began(self, running: Running) -> None:
        self._seen[running.row.number] = running
        again = f", attempt {running.row.attempts}" if running.row.attempts > 1 else ""
        self.row_line(
            running.row, f"begins: {counted(running.row.prompt_tokens or 0, 'prompt token')}{again}"
        )

    def went_on(self, running: Running) -> None:
        self.count(running)
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._every_s
            self.log(overall(self.progress, self._ledger, self._seen))

    def ended(self, row: Row, running: Running | None) -> None:
        self._seen.pop(row.number, None)
        self._told.pop(row.number, None)
        self.progress.ended(row.state, running.tokens if running else 0)
        self.row_line(row, outcome(row), bad=row.state == "failed")

    def say(self, line: str) -> None:
        self.log(line)

    def close(self) -> None:
        """Every line was written when it came."""

    def count(self, running: Running) -> None:
        new = running.tokens - self._told.get(running.row.number, 0)
        self._told[running.row.number] = running.tokens
        self.progress.wrote(new)

    def row_line(self, row: Row, text: str, bad: bool = False) -> None:
        if bad or not self._quiet:
            self._print(Text.assemble(printable(row.id), ": ", (printable(text), "red" if bad else "")))

    def log(self, line: str) -> None:
        if not self._quiet:
            self._print(Text(printable(line)))

    def _print(self, text: Text) -> None:
        stamp = time.strftime("%H:%M:%S")
        self._console.print(Text.assemble((stamp, "dim"), " ", text), soft_wrap=True)


class LiveBoard(LogBoard):
    """The whole job and each lane, drawn anew a few times a second; what ends badly is printed above."""

    def __init__(self, console: Console, ledger: Ledger, token_bytes: tuple[int, int]) -> None:
        """token_bytes: key and value of one token in the layers under the policy, here and in a full cache"""
        super().__init__(console, ledger)
        self._token_bytes = token_bytes
        self._live = Live(console=console, auto_refresh=False, transient=True)
        self._live.start()
        self._next_draw = 0.0

    def began(self, running: Running) -> None:
        self._seen[running.row.number] = running
        self._draw()

    def went_on(self, running: Running) -> None:
        self.count(running)
        self._draw()

    def close(self) -> None:
        self._live.stop()

    def _draw(self) -> None:
        if time.monotonic() >= self._next_draw:
            self._next_draw = time.monotonic() + REFRESH_S
            self._live.update(self._picture(), refresh=True)

    def _picture(self) -> RenderableType:
        progress = self.progress
        lanes = Table.grid(padding=(0, 2))
        room = max(1, self._console.height - 4)
        running = list(self._seen.values())
        for one in running[:room]:
            lanes.add_row(*lane_cells(one, self._token_bytes))
        more = [Text(f"and {len(running) - room} more", "dim")] if len(running) > room else []
        bar = Table.grid(expand=True)  # a bar by itself ends no line
        bar.add_row(ProgressBar(total=max(1, progress.rows), completed=progress.done + progress.failed))
        line = Text(overall(progress, self._ledger, self._seen), no_wrap=True, overflow="ellipsis")
        return Group(bar, line, lanes, *more)


def lane_cells(running: Running, token_bytes: tuple[int, int]) -> Iterator[Text]:
    """Name, tokens, rate, memory held."""
    yield Text(shortened(printable(running.row.id)), no_wrap=True)
    if running.first_token is None:
        yield Text(f"reading {running.read:,}/{running.task.work.plan.prompt_tokens:,}", "dim")
        return
    took = time.monotonic() - running.first_token
    yield Text(f"{running.tokens:,}/{running.task.work.plan.max_new_tokens:,}", justify="right")
    yield Text(as_rate((running.tokens - 1) / took) if took > 1 else "-", justify="right")
    held, full = running.bytes(token_bytes)
    yield Text(f"KV {as_bytes(held)} / {as_bytes(full)} ({as_ratio(held, full)})", "dim", no_wrap=True)


def overall(progress: Pace, ledger: Ledger, seen: dict[int, Running]) -> str:
    """'12 of 40 done, 1 failed, 8 running, 143 tokens/s, 1:02:10 left'."""
    written = sum(one.tokens for one in seen.values())
    left = progress.left_s(ledger.tokens_left(progress.usual_tokens) - written)
    parts = [f"{progress.done:,} of {progress.rows:,} done"]
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    parts += [f"{len(seen):,} running", as_rate(progress.tokens_per_s)]
    parts.append(f"about {as_duration(left)} left" if left is not None else "time left not known yet")
    return ", ".join(parts)


def outcome(row: Row) -> str:
    """How a row ended, in words."""
    if row.state == "failed":
        return f"failed: {row.error}"
    end = row.end
    tokens, seconds = end.get("output_tokens", 0), end.get("decode_s", 0.0)
    rate = f", {as_rate(tokens / seconds)}" if seconds else ""
    state = "done" if row.state == "done" else row.state
    return f"{state} ({end.get('reason', '-')}): {tokens:,} tokens in {as_duration(seconds)}{rate}"


def shortened(name: str) -> str:
    """The end of a path tells more than its beginning."""
    return name if len(name) <= NAME_CELLS else f"…{name[1 - NAME_CELLS :]}"
