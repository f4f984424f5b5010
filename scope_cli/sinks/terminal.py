"""Events in, a live terminal out: the text as it grows, and two lines of numbers below it.

A terminal has one writer. Rows that are complete are printed and belong to the terminal from then on; only
the last row, still growing, and the status lines are drawn anew.
"""

import sys
import time
from collections.abc import Callable

from rich.cells import get_character_cell_size
from rich.console import Console
from rich.live import Live
from rich.segment import Segment, Segments
from rich.style import Style

from scope_cli.console.progress import Progress
from scope_cli.events import Busy, Event, Failed, Finished, PromptProgress, Started, Token
from scope_cli.sinks.base import text_of
from scope_cli.sinks.status import Limit, RecentRate, blocks_of, fitting, memory_line, pace_line, slots_of

REFRESH_S = 1 / 8
DIM = Style(dim=True)
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
        self._planned = 0
        self._slots = ""
        self._blocks = blocks_of(console.encoding)
        self._reading = Progress(1)
        self._limit: Limit | None = None
        self._rate = RecentRate()
        self._next_draw = 0.0

    def receive(self, event: Event) -> None:
        self._row += text_of(event).translate(PRINTABLE)
        match event:
            case Started():
                self._planned = event.max_new_tokens
                self._limit = Limit.of(event.profile)
                self._slots = slots_of(event)
            case Busy():
                self._rate = RecentRate(leave_out=UNUSUAL)
                self._draw(lambda: [f"{event.what} ..."], now=True)
            case PromptProgress():
                if self._reading.parts != event.prompt_tokens or event.read < self._reading.done:
                    self._reading = Progress(event.prompt_tokens)
                self._reading.at(event.read)
                line = f"reading the prompt {event.read:,} / {event.prompt_tokens:,}"
                self._draw(lambda: [fitting([line, self._reading.left()], self._console.width)])
            case Token():
                self._rate.add(event.n, event.elapsed_s)
                self._draw(lambda: self._status_of(event))
            case Finished() | Failed():
                self.close()
                self._rate = RecentRate()

    def _status_of(self, token: Token) -> list[str]:
        pace = pace_line(token, self._planned, self._rate.tokens_per_s)
        memory = memory_line(token.reading, self._limit, self._slots, self._blocks)
        return [fitting(parts, self._console.width) for parts in (pace, memory)]

    def close(self) -> None:
        """The live region goes, the text stays."""
        self._live.stop()
        rows, last = split_rows(self._row, self._console.width)
        self._print([*rows, last] if last else rows)
        self._row = ""

    def _draw(self, status_lines: Callable[[], list[str]], now: bool = False) -> None:
        """Not at every token; what nobody sees is not made."""
        if time.monotonic() < self._next_draw and not now:
            return
        self._next_draw = time.monotonic() + REFRESH_S
        rows, self._row = split_rows(self._row, self._console.width)
        shown = status_lines() if self._stats else []
        lines = [Segment(self._row.rstrip()), *(Segment(line, DIM) for line in shown)]
        with self._console:  # one write: what is between print and update is never seen
            self._live.start()
            self._print(rows)
            below = Segments(piece for line in lines for piece in (line, Segment.line()))
            self._live.update(below, refresh=True)

    def _print(self, rows: list[str]) -> None:
        if rows:  # wrapped already
            self._console.print(Segments([Segment("\n".join([*rows, ""]))]), soft_wrap=True)


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
