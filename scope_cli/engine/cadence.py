"""What saving takes in, when to save next out: under a hundredth of the time, and every five minutes."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic

SHARE = 100  # a save is followed by so many times what it took
MOST_S = 300.0
LEAST_S = 1.0


class Cadence:
    """The clock starts when it is made."""

    def __init__(self, every_s: float | None = None, clock: Callable[[], float] = monotonic) -> None:
        """every_s: seconds from one save to the next, whatever they cost; None: as it is best"""
        self._every_s, self._clock = every_s, clock
        self._took_s = 0.1  # a guess, until one was made
        self._last = clock()

    def due(self) -> bool:
        wait = self._every_s
        if wait is None:
            wait = min(MOST_S, max(LEAST_S, SHARE * self._took_s))
        return self._clock() - self._last >= wait

    @contextmanager
    def saving(self) -> Iterator[None]:
        began = self._clock()
        try:
            yield
        finally:
            self._last = self._clock()
            self._took_s = self._last - began
