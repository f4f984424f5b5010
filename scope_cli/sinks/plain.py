"""Events in, exactly the generated text out: a pipe."""

from typing import TextIO

from scope_cli.events import Event
from scope_cli.sinks.base import text_of, write_utf8


class PlainText:
    """Nothing is added, animated or cleaned; a BrokenPipeError is the caller's to end the run with."""

    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout

    def receive(self, event: Event) -> None:
        if text := text_of(event):
            write_utf8(self._stdout, text)

    def close(self) -> None:
        """Every piece was flushed when it came."""
