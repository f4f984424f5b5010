import io
import os
from dataclasses import replace

import pytest

from scope_cli.events import Audit
from scope_cli.sinks.plain import PlainText


class Latin1Stdout(io.TextIOWrapper):
    def __init__(self):
        super().__init__(io.BytesIO(), encoding="latin-1")


def test_stdout_carries_exactly_the_generated_text(events_of_a_run):
    stdout = Latin1Stdout()
    sink = PlainText(stdout)
    for event in events_of_a_run(["# Ti", "", "tle\n\x1b[1m", "漢字 [bold]"], held_back="…"):
        sink.receive(event)
    sink.close()
    assert stdout.buffer.getvalue() == "# Title\n\x1b[1m漢字 [bold]…".encode()


def test_a_piece_is_readable_as_soon_as_it_was_received(events_of_a_run):
    reader, writer = os.pipe()
    os.set_blocking(reader, False)
    with open(writer, "w") as stdout:  # noqa: PTH123 (a descriptor has no path)
        for event in events_of_a_run(["now"])[:-1]:
            PlainText(stdout).receive(event)
        assert os.read(reader, 100) == b"now"
    os.close(reader)


def test_a_reader_that_went_away_is_the_callers_business(events_of_a_run):
    reader, writer = os.pipe()
    os.close(reader)
    stdout = open(writer, "w")  # noqa: PTH123, SIM115
    with pytest.raises(BrokenPipeError):
        for event in events_of_a_run(["nobody listens"]):
            PlainText(stdout).receive(event)
    with pytest.raises(BrokenPipeError):
        stdout.close()


@pytest.mark.parametrize(
    ("text", "quiet", "events", "ending"),
    [
        ("a line", False, slice(None), "\n"),
        ("a line\n", False, slice(None), ""),
        ("a line", True, slice(None), ""),  # nothing follows
        ("a line", True, slice(-1), "\n"),  # an error follows
        ("", False, slice(None), ""),
    ],
)
def test_what_is_said_beside_the_text_begins_on_a_line_of_its_own(
    events_of_a_run, text, quiet, events, ending
):
    stdout, stderr = io.StringIO(), io.StringIO()
    sink = PlainText(stdout, stderr, quiet)
    for event in events_of_a_run(list(text))[events]:
        sink.receive(event)
    sink.close()
    assert (stdout.getvalue(), stderr.getvalue()) == (text, ending)


def test_a_failed_audit_is_told_below_the_text(events_of_a_run):
    stdout, stderr = io.StringIO(), io.StringIO()
    *events, end = events_of_a_run(["a"])
    sink = PlainText(stdout, stderr, quiet=True)
    for event in [*events, replace(end, audit=Audit(True, False, True, ("over budget",)))]:
        sink.receive(event)
    assert stderr.getvalue() == "\n"
