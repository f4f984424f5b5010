"""So many seconds of computing and no more: a chat template is code that came with a model."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from threading import current_thread, main_thread

from scope_cli.errors import UsageError


class Endless(Exception):
    """A template took longer than any sensible one."""


class EndlessTemplate(UsageError):
    """The same, told."""


@contextmanager
def within(seconds: float) -> Iterator[None]:
    """Raises Endless after so many seconds of computing; only where signals are heard, in the main thread."""
    if not hasattr(signal, "setitimer") or current_thread() is not main_thread():
        yield
        return

    def end(*_: object) -> None:
        raise Endless

    before = signal.signal(signal.SIGVTALRM, end)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)
