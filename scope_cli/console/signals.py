"""Signals in, a flag out: the run ends after the current token instead of in the middle of one."""

import os
import signal
from contextlib import suppress
from types import FrameType, TracebackType

END = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


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
        ignored = signal.getsignal(signal.SIGHUP) is signal.SIG_IGN  # by nohup
        heard = [number for number in END if number != signal.SIGHUP or not ignored]
        self._before = {number: signal.signal(number, self._note) for number in heard}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            ctrl_c.seen = True
            raise KeyboardInterrupt
        if not self.signal:
            with suppress(OSError):  # no print: it may be in the middle of one
                os.write(2, self._acknowledgement)
        self.signal = number


class CtrlC:
    """Outside an Interruption, Ctrl-C raises KeyboardInterrupt as ever; here it is also remembered, because
    what it comes into, an import or a library's callback, may make an error of its own of it."""

    def __init__(self) -> None:
        self.seen = False

    def watch(self) -> None:
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, self._note)

    def leave(self) -> None:
        """Nothing is left to be tidied up: a further Ctrl-C ends the process without a word."""
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, signal.SIG_DFL)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.seen = True
        raise KeyboardInterrupt


ctrl_c = CtrlC()
