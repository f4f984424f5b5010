"""What goes on before there is anything else to see, and how long it took: words in, a line of stderr out."""

import os
import sys
from time import perf_counter
from typing import Self

import scope_cli
from scope_cli.console.safe import printable


class Phases:
    """On a terminal one line, which the next phase replaces and the end takes away; elsewhere a line each.

    log: also where it is no terminal; commands whose log says what they do without it leave it away
    """

    def __init__(self, quiet: bool = False, log: bool = True) -> None:
        self._quiet, self._log = quiet, log
        self._animated = sys.stderr.isatty() and os.environ.get("TERM") != "dumb"
        self._shown = False
        self._ends: dict[str, float] = {}  # of stages, on the clock of perf_counter

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.end()

    def reach(self, stage: str) -> None:
        """That it has ended, where it has not ended before."""
        self._ends.setdefault(stage, perf_counter())

    def times(self) -> str:
        """'2.41 s: command 0.30, imports 1.52, ...', each since the one before."""
        began = before = scope_cli.BEGAN
        stages = []
        for stage, end in self._ends.items():
            stages.append(f"{stage} {end - before:.2f}")
            before = end
        return f"{before - began:.2f} s: {', '.join(stages)}"

    def begin(self, what: str) -> None:
        """'loading smollm2-135m'"""
        if self._quiet:
            return
        line = printable(f"{what} ...")
        if not self._animated:
            if self._log:
                print(line, file=sys.stderr, flush=True)
            return
        width = _width()
        print(f"\r\x1b[K{line[: width - 1]}", end="", file=sys.stderr, flush=True)
        self._shown = True

    def say(self, line: str) -> None:
        """Something that stays on the screen."""
        if not self._quiet:
            self.end()
            print(printable(line, lines=True), file=sys.stderr, flush=True)

    def end(self) -> None:
        """What comes next has the line for itself."""
        if self._shown:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
            self._shown = False


def _width() -> int:
    try:
        return max(2, os.get_terminal_size(2).columns)
    except OSError:
        return 80
