"""Events in, one reading a second out: a file of JSON lines, added to what is there."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from threading import Event as Signal
from threading import Thread

from scope_cli.console.safe import as_json
from scope_cli.errors import ScopeError, UsageError
from scope_cli.events import Event
from scope_cli.sinks.meter import Meter

EVERY_S = 1.0


class StatsFile:
    """A thread writes, so that a long step leaves no gap; the last line is the end of the run.

    Where the disk is full the run goes on, and is told at its end.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._meter = Meter()
        self._closed = Signal()
        self._failure: OSError | None = None
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise UsageError(
                f"--stats-file: cannot write {path}: {error.strerror}",
                "name a file in a folder that exists",
            ) from error
        self._writer = Thread(target=self._write_on, name="stats-file", daemon=True)
        self._writer.start()

    def receive(self, event: Event) -> None:
        self._meter.receive(event)

    def close(self) -> None:
        self._closed.set()
        self._writer.join()
        self._line()
        self._file.close()
        if self._failure is not None:
            raise ScopeError(
                f"--stats-file: cannot continue writing {self._path}: {self._failure.strerror}",
                "the run itself is finished",
            )

    def _write_on(self) -> None:
        while not self._closed.wait(EVERY_S):
            self._line()

    def _line(self) -> None:
        if self._failure is not None:
            return
        now = datetime.now().astimezone().isoformat(timespec="milliseconds")
        line = as_json({"time": now, **self._meter.snapshot()}) + "\n"
        try:
            self._file.write(line.encode())
        except OSError as error:
            self._failure = error
