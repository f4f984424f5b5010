import io
import re
from dataclasses import replace

import pyte
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from scope_cli.console.progress import Progress
from scope_cli.events import Busy, PromptProgress
from scope_cli.settings.schema import Profile
from scope_cli.sinks import status, terminal
from scope_cli.sinks.status import Limit, RecentRate, fitting, memory_line, slots_of
from scope_cli.sinks.terminal import Terminal, split_rows
from tests.helpers.readings import READING

WIDTH, HEIGHT = 40, 10
PROSE = "The cache of the prompt is kept, and the cache of the output is bounded by its budget. " * 30


class Tty:
    """A terminal of 40 columns and 10 rows: what a person sees, and what has scrolled off the top."""

    def __init__(self) -> None:
        self.sent = io.StringIO()
        self.screen = pyte.HistoryScreen(WIDTH, HEIGHT, history=10_000)
        self.screen.set_mode(pyte.modes.LNM)  # a terminal's driver turns a newline into both movements
        self._stream = pyte.Stream(self.screen)
        self.console = Console(file=self, force_terminal=True, width=WIDTH, height=HEIGHT, _environ={})

    def write(self, text: str) -> int:
        self._stream.feed(text)
        return self.sent.write(text)

    encoding = "utf-8"

    def flush(self) -> None: ...

    def resize(self, width: int) -> None:
        self.screen.resize(HEIGHT, width)
        self.console.width = width

    def rows(self) -> list[str]:
        columns = range(self.screen.columns)
        gone = ["".join(row[x].data for x in columns) for row in self.screen.history.top]
        seen = [row.rstrip() for row in [*gone, *self.screen.display]]
        while seen and not seen[-1]:
            seen.pop()
        return seen


@pytest.fixture(autouse=True)
def every_token_is_drawn(monkeypatch):
    monkeypatch.setattr(terminal, "REFRESH_S", 0)


def show(events, stats: bool = True) -> Tty:
    tty = Tty()
    sink = Terminal(tty.console, stats)
    for event in events:
        sink.receive(event)
    sink.close()
    return tty


def pieces_of(text: str, size: int = 3) -> list[str]:
    return [text[start : start + size] for start in range(0, len(text), size)]


@pytest.mark.parametrize("stats", [True, False])
def test_a_paragraph_longer_than_the_screen_stays_whole_and_untorn(events_of_a_run, stats):
    rows = show(events_of_a_run(pieces_of(PROSE)), stats).rows()
    assert len(rows) > 6 * HEIGHT
    assert " ".join(rows) == PROSE.strip()


def test_a_word_of_thousands_of_characters_fills_every_row(events_of_a_run):
    word = "".join(chr(ord("a") + n % 26) for n in range(3000))
    assert show(events_of_a_run(pieces_of(word, 7))).rows() == pieces_of(word, WIDTH)


def test_newlines_and_blank_lines_stay_where_they_were(events_of_a_run):
    text = "# Title\n\n\n  indented\nlast\n"
    assert show(events_of_a_run(list(text))).rows() == text.splitlines()


def test_wide_characters_and_tabs_take_their_cells(events_of_a_run):
    word = "漢字" * 50  # 200 cells
    tty = show(events_of_a_run([*pieces_of(word), "\na\tb\n漢\tc"]))
    tabbed = ["a       b", "漢      c"]
    assert [row.replace(" ", "") for row in tty.rows()[:-2]] == pieces_of(word, WIDTH // 2)
    assert tty.sent.getvalue().count(tabbed[0]) and tty.sent.getvalue().count(tabbed[1])


def test_markup_is_text_and_control_characters_do_not_reach_the_terminal(events_of_a_run):
    tty = show(
        events_of_a_run(["[bold]no[/bold] :smile:", "\x1b]0;title\x07", "\x1b[2J", "\r\x08\x9b", "end"])
    )
    assert tty.rows() == ["[bold]no[/bold] :smile:]0;title[2Jend"]
    assert "\x1b[2J" not in tty.sent.getvalue()
    assert tty.screen.title == ""


def test_what_was_held_back_ends_the_text_and_the_cursor_is_on_a_fresh_line(events_of_a_run):
    tty = show(events_of_a_run(["the ", "end"], held_back="."))
    assert tty.rows() == ["the end."]
    assert (tty.screen.cursor.x, tty.screen.cursor.y, tty.screen.cursor.hidden) == (0, 1, False)


def test_a_run_that_breaks_off_leaves_its_text(events_of_a_run):
    assert show(events_of_a_run(["half a sen"])[:-1]).rows() == ["half a sen"]


def test_the_status_line_stands_below_the_growing_text(events_of_a_run):
    tty = Tty()
    sink = Terminal(tty.console)
    started, progress, read, *tokens, _ = events_of_a_run(pieces_of(PROSE[:200]))
    sink.receive(started)
    sink.receive(progress)
    assert tty.rows() == ["", "reading the prompt 1,024 / 3,210"]
    for event in [read, *tokens]:
        sink.receive(event)
    *rows, pace, held = tty.rows()
    assert " ".join(rows) == PROSE[:200].strip()
    assert pace == "67/4,096 tokens  20.0/s  3:21 left"  # as much as 40 columns hold
    assert held == "KV █░░░░░░░░░ 12% of full  evicted 1,071"
    sink.close()


def test_a_wide_terminal_shows_every_number(events_of_a_run):
    started, *_, token, _ = events_of_a_run(["x"] * 24)
    limit = Limit.of({"decode": {"strategy": "slide", "budget": 256, "total_budget": None}})
    parts = memory_line(token.reading, limit, slots_of(started))
    assert fitting(parts, 200) == (
        "KV █░░░░░░░░░ 12% of full  evicted 1,071  held 256/256  float32 slots  reads 13.00 MiB/step  "
        "12.00 MiB / 96.00 MiB"
    )
    assert fitting(parts, 80).endswith("held 256/256  float32 slots")


@pytest.mark.parametrize(
    ("part", "whole", "drawn"),
    [
        (0, 10, ".........."),
        (1, 1000, "#........."),
        (5, 10, "#####....."),
        (10, 10, "#" * 10),
        (0, 0, "#" * 10),
    ],
)
def test_a_bar_is_as_long_as_what_is_held(part, whole, drawn):
    assert status.bar(part, whole, status.LETTERS) == drawn


def test_a_terminal_without_blocks_gets_letters():
    assert status.blocks_of("utf-8") == status.BLOCKS
    assert status.blocks_of("latin-1") == status.blocks_of("no such") == status.LETTERS


@pytest.mark.parametrize(
    ("cache", "said"),
    [
        ({"kv": "plain"}, "float32 slots"),
        ({"kv": "int8"}, "int8 slots"),
        ({"kv": "k8v4"}, "int8/int4 slots"),
        ({"kv": "k8v4", "keys": "plain"}, "float32/int4 slots"),
        ({"kv": "auto"}, "int8 slots"),
    ],
)
def test_the_format_of_the_slots_is_named(events_of_a_run, cache, said):
    started, *_ = events_of_a_run([])
    assert slots_of(replace(started, profile=Profile(cache=cache).as_dict())) == said


def test_a_long_prompt_says_how_long_it_will_take(events_of_a_run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr("scope_cli.sinks.terminal.Progress", lambda parts: Progress(parts, lambda: now[0]))
    tty = Tty()
    sink = Terminal(tty.console)
    sink.receive(PromptProgress(0, 100, 1000))
    now[0] = 20.0
    sink.receive(PromptProgress(0, 500, 1000))
    assert tty.rows()[-1] == "reading the prompt 500 / 1,000"  # 40 columns have no room for more
    tty.resize(80)
    sink.receive(PromptProgress(0, 500, 1000))
    assert tty.rows()[-1] == "reading the prompt 500 / 1,000  about 20.0 s left"
    sink.close()


@pytest.mark.parametrize("setting", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_a_picture_without_colour_or_cursor(events_of_a_run, monkeypatch, setting):
    """The text is all there, and on a dumb terminal it is all that is."""
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=40, _environ={"TERM": "xterm", **setting})
    sink = Terminal(console)
    for event in events_of_a_run(pieces_of(PROSE)):
        sink.receive(event)
    sink.close()
    written = file.getvalue()
    assert not re.search(r"\x1b\[\d*;?3[0-9]m", written), "no colour"
    if "TERM" in setting:
        assert "\x1b" not in written and " ".join(written.split()) == PROSE.strip()


@pytest.mark.parametrize(
    ("decode", "shown"),
    [
        ({"strategy": "adaptive", "budget": 512, "total_budget": None}, "held 256/512"),
        ({"strategy": "slide", "budget": 512, "total_budget": 4000}, "held 3,466/4,000"),
        ({"strategy": "full", "budget": 512, "total_budget": None}, None),
    ],
)
def test_what_is_held_stands_beside_its_limit(decode, shown):
    limit = Limit.of({"decode": decode})
    assert (limit and limit.in_words(READING)) == shown


def test_compiling_is_shown_as_what_it_is_and_no_rate_comes_from_it(events_of_a_run):
    tty = Tty()
    sink = Terminal(tty.console)
    started, progress, read, *tokens, _ = events_of_a_run(["x"] * 80)
    slow = [replace(one, elapsed_s=100 + one.elapsed_s) for one in tokens]
    for event in (started, progress, read, tokens[0], Busy("compiling the step")):
        sink.receive(event)
    assert tty.rows()[-1] == "compiling the step ..."
    for event in slow[1:5]:
        sink.receive(event)
    assert "- left" in tty.rows()[-2], "neither the wait nor the first tokens after it say how long it takes"
    for event in slow[5:40]:
        sink.receive(event)
    assert "20.0/s  3:23 left" in tty.rows()[-2]
    sink.close()


@given(st.integers(1, 200))
def test_the_status_never_takes_a_second_row(width):
    parts = ["1,024/4,096 tokens", "20.0 tokens/s", "2:33 left", "KV 12.00 MiB / 96.00 MiB (12.5%)"]
    line = fitting(parts, width)
    assert len(line) <= max(width, len(parts[0]))
    assert "  ".join(parts).startswith(line)


def test_resizing_leaves_printed_rows_and_wraps_what_comes(events_of_a_run):
    tty = Tty()
    sink = Terminal(tty.console)
    events = events_of_a_run(pieces_of(PROSE))
    for event in events[:300]:
        sink.receive(event)
    before = [row for row in tty.rows() if "tokens" not in row and "KV " not in row][:-1]
    tty.resize(60)
    for event in events[300:]:
        sink.receive(event)
    rows = tty.rows()
    assert rows[: len(before)] == before
    assert max(len(row) for row in rows[len(before) :]) > WIDTH
    assert " ".join(rows) == PROSE.strip()


def test_the_screen_is_drawn_eight_times_a_second_at_most(events_of_a_run, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(terminal, "REFRESH_S", 1 / 8)
    monkeypatch.setattr("time.monotonic", lambda: now[0])
    tty = Tty()
    writes = []
    tty.write = lambda text: writes.append(text)
    sink = Terminal(tty.console)
    for event in events_of_a_run(["word "] * 1000)[:-1]:
        now[0] += 0.01
        sink.receive(event)
    assert 70 < len(writes) <= 80 + 2
    sink.close()


def test_the_rate_is_of_the_last_seconds_and_waits_for_a_meaning():
    rate = RecentRate()
    rate.add(1, 0.0)
    assert rate.tokens_per_s is None
    rate.add(2, 0.001)
    assert rate.tokens_per_s is None
    for n in range(3, 203):
        rate.add(n, n * 0.1)  # 10 a second for 20 s
    for n in range(203, 403):
        rate.add(n, 20.2 + (n - 202) * 0.05)  # then 20 a second for 10 s
    assert rate.tokens_per_s == pytest.approx(20, rel=0.02)
    rate.add(403, 60.0)  # a slow one: it alone is the last five seconds
    assert rate.tokens_per_s == pytest.approx(1 / 29.8, rel=0.01)


@given(
    st.text(st.sampled_from("ab cd\t\n漢é\u0301\u3000👩\u200d🚀❤\ufe0f🇩🇪—\xa0")),
    st.integers(1, 9),
    st.integers(2, 30),
)
@example("aaaa b", 1, 4)
@example(" 漢字aa bb", 1, 4)
def test_rows_that_arrive_in_pieces_are_the_rows_of_the_whole(text, size, width):
    shown, rest = [], ""
    for piece in pieces_of(text, size):
        rows, rest = split_rows(rest + piece, width)
        shown += rows
    assert (shown, rest) == split_rows(text, width)
    assert "".join("".join([*shown, rest]).split()) == "".join(text.split())  # nothing is lost
    assert all(cell_len(row) <= width for row in [*shown, rest.rstrip()])


@given(st.lists(st.text(st.sampled_from("abcé"), min_size=1, max_size=12)), st.integers(12, 30))
def test_a_word_that_fits_a_row_is_never_broken(words, width):
    rows, rest = split_rows(" ".join(words), width)
    assert " ".join([*rows, rest]).split() == words
