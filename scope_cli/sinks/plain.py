"""Events in, exactly the generated text out: a pipe."""

from typing import TextIO

from scope_cli.events import Event, Failed, Finished, TakenBack
from scope_cli.sinks.base import text_of, write_utf8


class PlainText:
    """Nothing is added, animated or cleaned; an OSError of stdout is the caller's to end the run with.

    beside: stderr, where it ends in the same place: what is said there begins on a line of its own
    quiet: nothing is said there about a run that went well
    """

    def __init__(self, stdout: TextIO, beside: TextIO | None = None, quiet: bool = False) -> None:
        self._stdout, self._beside, self._quiet = stdout, beside, quiet
        self._in_a_line = self._through = False

    def receive(self, event: Event) -> None:
        if text := text_of(event):
            write_utf8(self._stdout, text)
            self._in_a_line = not text.endswith("\n")
        self._through = isinstance(event, Finished) and event.audit.passed
        told = isinstance(event, Failed) or (isinstance(event, TakenBack | Finished) and not self._quiet)
        if told or (isinstance(event, Finished) and not self._through):
            self._end_line()

    def close(self) -> None:
        """Every piece was flushed when it came."""
        if not self._through:  # an error follows
            self._end_line()

    def _end_line(self) -> None:
        if self._in_a_line and self._beside is not None:
            self._beside.write("\n")
            self._beside.flush()
        self._in_a_line = False
