"""SIGINT and SIGTERM in, a flag out: the run ends after the current token instead of in the middle of one."""

import signal
from types import FrameType, TracebackType


class Interruption:
    """While it is entered, the first signal is noted in `signal`; a second Ctrl-C ends at once."""

    def __init__(self) -> None:
        self.signal = 0  # its number, once there was one

    def __call__(self) -> bool:
        return self.signal != 0

    @property
    def exit_code(self) -> int:
        """128 + the signal's number, as shells have it; 0 without a signal."""
        return 128 + self.signal if self.signal else 0

    def __enter__(self) -> "Interruption":
        self._before = {
            number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)
        }
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.signal and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = number
