"""Parts that are done in, the time that the rest will take out."""

from collections.abc import Callable
from time import monotonic

from scope_cli.units import as_duration

FIRST = 0.03  # of the whole: before that nothing can be said


class Progress:
    """How far a number of like parts has come."""

    def __init__(self, parts: int, clock: Callable[[], float] = monotonic) -> None:
        self.parts, self._clock, self._began = parts, clock, clock()
        self.done = 0.0

    def at(self, done: float) -> None:
        """So many parts, and fractions of one, are done by now."""
        self.done = done

    def one_more(self) -> None:
        self.done += 1

    def less(self, parts: int) -> None:
        """So many parts turn out to be done already, in no time."""
        self.parts -= parts

    def left(self, words: str = "{} left") -> str:
        """'3:20 left'; '' at the beginning and at the end."""
        if not FIRST * self.parts <= self.done < self.parts:
            return ""
        return words.format(
            f"about {as_duration((self._clock() - self._began) * (self.parts / self.done - 1))}"
        )
