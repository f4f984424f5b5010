"""Events in, a live terminal out: the text as it grows, and one line of numbers below it.

A terminal has one writer. Rows that are complete are printed and belong to the terminal from then on; only
the last row, still growing, and the status line are drawn anew.
"""

import sys
import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from rich.cells import get_character_cell_size
from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from scope_cli.events import Busy, Event, Failed, Finished, PromptProgress, Reading, Started, Token
from scope_cli.sinks.base import text_of
from scope_cli.units import as_bytes, as_duration, as_rate, as_ratio

REFRESH_S = 1 / 8
RATE_WINDOW_S = 5.0
RATE_SHORTEST_S = 0.5  # over less than that a rate says nothing
UNUSUAL = 4  # tokens after compiling that are slower than those to come
PRINTABLE: dict[int, str | None] = {  # no control code but tab and newline
    **dict.fromkeys([*range(9), *range(11, 32), *range(127, 160)]),
    **dict.fromkeys([0x2028, 0x2029], "\n"),  # Unicode's own line and paragraph ends
}
EMOJI_STYLE = "\ufe0f"  # may make the character before it wide
TAB_CELLS = 8


class Terminal:
    """A person watching one output; several come one after the other (`several.InOrder`)."""

    def __init__(self, console: Console, stats: bool = True) -> None:
        self._console = console
        self._stats = stats
        self._live = Live(
            console=console,
            auto_refresh=False,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # `2> log` stays in the log
        )
        self._row = ""  # received, and not yet printed for good
        self._status = ""
        self._planned = 0
        self._limit: Limit | None = None
        self._rate = RecentRate()
        self._next_draw = 0.0

    def receive(self, event: Event) -> None:
        self._row += text_of(event).translate(PRINTABLE)
        match event:
            case Started():
                self._planned = event.max_new_tokens
                self._limit = Limit.of(event.profile)
            case Busy():
                self._status = f"{event.what} ..."
                self._rate = RecentRate(leave_out=UNUSUAL)
                self._draw(now=True)
            case PromptProgress():
                self._status = f"reading the prompt {event.read:,} / {event.prompt_tokens:,}"
                self._draw()
            case Token():
                self._rate.add(event.n, event.elapsed_s)
                parts = meter(event, self._planned, self._rate.tokens_per_s, self._limit)
                self._status = fitting(parts, self._console.width)
                self._draw()
            case Finished() | Failed():
                self.close()
                self._rate = RecentRate()

    def close(self) -> None:
        """The live region goes, the text stays."""
        self._live.stop()
        rows, last = split_rows(self._row, self._console.width)
        self._print([*rows, last] if last else rows)
        self._row = ""

    def _draw(self, now: bool = False) -> None:
        if time.monotonic() < self._next_draw and not now:
            return
        self._next_draw = time.monotonic() + REFRESH_S
        rows, self._row = split_rows(self._row, self._console.width)
        status = [Text(self._status, "dim", no_wrap=True, overflow="crop")] if self._stats else []
        with self._console:  # one write: what is between print and update is never seen
            self._live.start()
            self._print(rows)
            growing = Text(self._row.rstrip(), no_wrap=True)
            self._live.update(Group(growing, *status), refresh=True)

    def _print(self, rows: list[str]) -> None:
        if rows:
            self._console.print(Text("\n".join(rows)), soft_wrap=True)  # wrapped already


def split_rows(text: str, width: int) -> tuple[list[str], str]:
    """The wrapped rows of `text` that nothing to come can change, and the rest: its last row.

    Rows break after a blank or beside a wide character, a longer word anywhere; blanks hang over the edge.
    rich's own wrapping measures graphemes and raises IndexError on some odd ones.
    """
    rows, row, cells, break_at = [], "", 0, 0
    for character in text:
        if character == "\n":
            rows.append(row.rstrip())
            row, cells, break_at = "", 0, 0
            continue
        piece = " " * (TAB_CELLS - cells % TAB_CELLS) if character == "\t" else character
        size = cells_of(piece)
        if size == 2:
            break_at = len(row)
        if cells + size > width and not piece.isspace():
            at = break_at or len(row)
            rows.append(row[:at].rstrip())
            row, break_at = row[at:], 0
            cells = cells_of(row)
        row += piece
        cells += size
        if size == 2 or piece.isspace():
            break_at = len(row)
    return rows, row


def cells_of(text: str) -> int:
    """Character by character: never less than a terminal takes, however it joins them."""
    return sum(1 if character == EMOJI_STYLE else get_character_cell_size(character) for character in text)


class RecentRate:
    """Tokens per second over the last few seconds; the first `leave_out` tokens do not count."""

    def __init__(self, leave_out: int = 0) -> None:
        self._seen: deque[tuple[float, int]] = deque()
        self._leave_out = leave_out

    def add(self, n: int, elapsed_s: float) -> None:
        if self._leave_out > 0:
            self._leave_out -= 1
            return
        self._seen.append((elapsed_s, n))
        while len(self._seen) > 2 and elapsed_s - self._seen[1][0] >= RATE_WINDOW_S:
            self._seen.popleft()

    @property
    def tokens_per_s(self) -> float | None:
        if not self._seen:
            return None
        (since, first), (until, last) = self._seen[0], self._seen[-1]
        return (last - first) / (until - since) if until - since >= RATE_SHORTEST_S else None


@dataclass(frozen=True)
class Limit:
    """What the profile allows to be held."""

    tokens: int
    counts_prompt: bool

    @classmethod
    def of(cls, profile: dict[str, Any]) -> "Limit | None":
        """None where nothing limits it."""
        decode = profile.get("decode", {})
        if decode.get("strategy") in ("full", "rpc"):
            return None
        total = decode.get("total_budget")
        limit = total or decode.get("budget")
        return cls(limit, counts_prompt=total is not None) if limit else None

    def in_words(self, reading: Reading) -> str:
        held = reading.kept_generated + (reading.kept_prompt if self.counts_prompt else 0)
        return f"held {held:,}/{self.tokens:,}"


def meter(token: Token, planned: int, tokens_per_s: float | None, limit: Limit | None) -> list[str]:
    """The parts of the status line, the most important first: the first six fit 80 columns in most runs."""
    reading = token.reading
    held, full = reading.held_bytes, reading.full_bytes
    left = as_duration((planned - token.n) / tokens_per_s) if tokens_per_s else "-"
    return [
        f"{token.n:,}/{planned:,} tokens",
        f"{as_rate(tokens_per_s) if tokens_per_s else '-'}".replace(" tokens", ""),
        f"{left} left",
        *([limit.in_words(reading)] if limit else []),
        f"evicted {reading.evicted_tokens:,}",
        f"KV {as_ratio(held, full)} of full",
        f"{as_bytes(held)} / {as_bytes(full)}",
        f"slots {reading.kept_prompt + reading.kept_generated:,}/{reading.slots:,}",
    ]


def fitting(parts: Iterable[str], width: int) -> str:
    """As many parts as one row holds, dropped from the right."""
    line, *rest = parts
    for part in rest:
        if len(line) + 2 + len(part) > width:
            break
        line += f"  {part}"
    return line
