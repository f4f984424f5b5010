"""Signals in, a flag out: the run ends after the current token instead of in the middle of one."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType

END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def heard() -> list[signal.Signals]:
    """Those that end us. One that is ignored when we come stays so: SIGHUP under nohup, Ctrl-C where a script
    has put us into the background."""
    return [number for number in END if signal.getsignal(number) is not signal.SIG_IGN]


class Interruption:
    """While it is entered, the first signal is noted in `signal`; a second Ctrl-C ends at once.

    acknowledgement: written to stderr when the first signal comes, because the end of a step may take a while
    """

    def __init__(self, acknowledgement: str = "") -> None:
        self.signal = 0  # its number, once there was one
        self._acknowledgement = acknowledgement.encode()

    def __call__(self) -> bool:
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> "Interruption":
        self._before = {number: signal.signal(number, self._note) for number in heard()}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            broken_off.by(number)
        if not self.signal:
            with suppress(OSError):  # no print: it may be in the middle of one
                os.write(2, self._acknowledgement)
        self.signal = number


class BrokenOff:
    """Outside an Interruption, each of the signals raises KeyboardInterrupt, as Ctrl-C ever does: what was
    measured is kept, what was begun is tidied up. Here it is also remembered, because what it comes into, an
    import or a library's callback, may make an error of its own of it."""

    def __init__(self) -> None:
        self.signal = 0  # its number, once there was one

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; that of Ctrl-C where nobody has seen which."""
        return 128 + (self.signal or signal.SIGINT)

    def watch(self) -> None:
        for number in heard():
            signal.signal(number, lambda number, frame: self.by(number))

    def leave(self) -> None:
        """Nothing is left to be tidied up: a further signal ends the process without a word."""
        for number in heard():
            signal.signal(number, signal.SIG_DFL)

    def by(self, number: int) -> None:
        self.signal = number
        raise KeyboardInterrupt


broken_off = BrokenOff()
