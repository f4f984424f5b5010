"""What a person sees of a job: rates, time left, a line per lane, failures."""

import io
import time

import pyte
import pytest
from rich.console import Console

from scope_cli.batch.board import LiveBoard, LogBoard, shortened
from scope_cli.batch.desk import Running
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.progress import Pace
from scope_cli.batch.rows import Row
from scope_cli.policies.schedule import Schedule

COLUMNS, LINES = 100, 12


class Clock:
    def __init__(self, monkeypatch):
        self.now = 1000.0
        monkeypatch.setattr(time, "monotonic", lambda: self.now)


@pytest.fixture
def clock(monkeypatch):
    return Clock(monkeypatch)


class Plan:
    prompt_tokens, max_new_tokens = 40, 200
    schedule = Schedule("slide", budget=8, recent=2, interval=4, planned=200)  # 4 leave where 9 are held


class Task:
    class work:
        plan = Plan


def fill(folder, rows=3):
    ledger = Ledger(folder)
    with ledger.transaction():
        for number in range(rows):
            ledger.put(Row(number, f"p{number}.txt", "", f"p{number}.txt", "", planned=200, prompt_tokens=40))
    return ledger


def running(number):
    row = Row(number, f"p{number}.txt", "", f"p{number}.txt", "", prompt_tokens=40, attempts=1)
    return Running(row, Task, None, "", None)


def test_time_left_is_what_is_planned_until_others_have_ended(tmp_path, clock):
    ledger = fill(tmp_path)
    progress = Pace(ledger.counts())
    for _ in range(20):
        clock.now += 1
        progress.wrote(10)
    assert progress.tokens_per_s == pytest.approx(10)
    assert progress.left_s(ledger.tokens_left(progress.usual_tokens) - 200) == pytest.approx(40)
    progress.ended("done", 50)
    with ledger.transaction():
        ledger.change(0, state="done")
    assert progress.left_s(ledger.tokens_left(progress.usual_tokens)) == pytest.approx(10)


def test_what_a_lane_holds_follows_its_schedule():
    one = running(0)
    one.read_bytes = 400, 400
    one.wrote(9)
    assert one.bytes((10, 12)) == (400 + 5 * 10, 400 + 9 * 12)
    one.wrote(13)
    assert one.bytes((10, 12)) == (400 + 5 * 10, 400 + 13 * 12)


def test_a_log_tells_how_it_stands_at_its_interval(tmp_path, clock):
    file = io.StringIO()
    board = LogBoard(Console(file=file, width=200), fill(tmp_path), every_s=5)
    one = running(0)
    board.began(one)
    for n in range(1, 12):
        clock.now += 1
        one.wrote(n)
        board.went_on(one)
    lines = file.getvalue().splitlines()
    assert len(lines) == 3 and "p0.txt: begins: 40 prompt tokens" in lines[0]
    assert "0 of 3 done, 1 running, 1.0 tokens/s, about 9:55 left" in lines[1]


def test_the_live_board_has_a_line_per_lane_and_failures_stay_above(tmp_path, clock):
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.Stream(screen)
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=COLUMNS, height=LINES, legacy_windows=False)
    ledger = fill(tmp_path)
    board = LiveBoard(console, ledger, token_bytes=(1024, 1024))
    one, two = running(0), running(1)
    board.began(one)
    board.began(two)
    one.first_token, one.read_bytes = clock.now, (40 * 1024, 40 * 1024)
    for n in range(1, 21):
        clock.now += 0.5
        one.wrote(n)
        board.went_on(one)
    stream.feed(file.getvalue().replace("\n", "\r\n"))
    rows = [row.rstrip() for row in screen.display]
    (first,) = [row for row in rows if row.startswith("p0.txt")]
    assert "20/200" in first and "1.9 tokens/s" in first and "KV 48.00 KiB / 60.00 KiB (80.0%)" in first
    assert any(row.startswith("p1.txt") and "reading 0/40" in row for row in rows)
    assert any("0 of 3 done, 2 running" in row and "left" in row for row in rows), rows
    failed = Row(1, "p1.txt", "", "p1.txt", "", state="failed", error="a reason")
    board.ended(failed, two)
    clock.now += 1
    board.went_on(one)
    board.close()
    screen.reset()
    stream.feed(file.getvalue().replace("\n", "\r\n"))
    rows = [row.rstrip() for row in screen.display if row.strip()]
    assert any("p1.txt: failed: a reason" in row for row in rows)
    assert not any(row.startswith("p0.txt") for row in rows), "the live part goes at the end"


def test_more_lanes_than_lines_are_counted(tmp_path, clock):
    file = io.StringIO()
    console = Console(file=file, force_terminal=True, width=COLUMNS, height=6)
    board = LiveBoard(console, fill(tmp_path, 9), token_bytes=(1, 1))
    for number in range(9):
        clock.now += 1
        board.began(running(number))
    board.close()
    assert "and 7 more" in file.getvalue()


def test_of_a_long_name_the_end_is_shown():
    assert len(shortened("x" * 100)) == 40 and shortened("short") == "short"
