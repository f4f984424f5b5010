import io
import os

import pytest

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
