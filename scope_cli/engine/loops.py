"""Token ids in, the stretches that repeat themselves out.

Two rules. Exact: some copies of the same tokens behind each other. Near: a paragraph whose copies differ in a
few tokens: nearly every 4-gram stands as it stood one period before.
"""

import numpy as np

from scope_cli.events import Loop

TOGETHER = 64  # tokens that are looked at together
NGRAM = 4
WEIGHT = 7  # a 4-gram that is new weighs as much as so many that are not: more than 7 of 8 stay
MOST = 128  # old 4-grams that a stretch can live on: 16 new ones in a row end any


class LoopWatch:
    """Both rules, on one output; a token costs as much however long the output is."""

    def __init__(self) -> None:
        self._exact, self._near = ExactWatch(), NearWatch()
        self._noted: list[int] = []  # and not yet looked at

    def feed(self, token_id: int) -> Loop | None:
        """The loop that the output ends with now."""
        exact, near = self._exact.feed(token_id), self._near.feed(token_id)
        return exact or near

    def note(self, token_id: int) -> None:
        """The same where nobody acts on a loop: many tokens are looked at together.

        What a token alone takes is ten times as much: the step between two of them has filled all caches.
        """
        self._noted.append(token_id)
        if len(self._noted) == TOGETHER:
            self._look()

    def _look(self) -> None:
        for token_id in self._noted:
            self.feed(token_id)
        self._noted.clear()

    @property
    def safe(self) -> int:
        """So many tokens come before the second copy of any loop that may yet be noticed."""
        return min(self._exact.safe, self._near.safe)

    def longest(self) -> Loop | None:
        """The longest exact one so far, else the longest near one; the later one among equals."""
        self._look()
        return self._exact.longest() or self._near.longest()


class ExactWatch:
    """Notices copies that are the same; a token costs O(max_period)."""

    def __init__(self, max_period: int = 128, min_copies: int = 4, min_tokens: int = 64) -> None:
        """A loop is `min_copies` copies of at most `max_period` tokens, and `min_tokens` in all."""
        self._periods = np.arange(1, max_period + 1)
        self._enough = np.maximum(min_copies * self._periods, min_tokens)
        self._newest = np.full(max_period, -1)  # [max_period], the newest token first
        self._matches = np.zeros_like(self._newest)  # [max_period], tokens in a row equal to one period ago
        self._tokens = 0
        self._longest = (0, 0, 0)  # tokens, start, period

    def feed(self, token_id: int) -> Loop | None:
        """The loop that the output ends with now."""
        self._tokens += 1
        self._matches += 1
        self._matches *= self._newest == token_id
        self._newest[1:] = self._newest[:-1]
        self._newest[0] = token_id
        stretches = self._matches + self._periods  # the first copy matches nothing
        stretches *= stretches >= self._enough
        best = int(stretches.argmax())  # the smallest period among equals
        length = int(stretches[best])
        if not length:
            return None
        self._longest = max(self._longest, (length, self._tokens - length, best + 1))
        return Loop(best + 1, self._tokens - length, length, True)

    @property
    def safe(self) -> int:
        """As `LoopWatch`."""
        return self._tokens - int(self._matches.max())

    def longest(self) -> Loop | None:
        """The longest stretch so far with its smallest period, the later one among equals."""
        tokens, start, period = self._longest
        return Loop(period, start, tokens, start + tokens == self._tokens) if tokens else None


class NearWatch:
    """Notices copies with other names and numbers in them; a token costs O(longest period).

    At each period a stretch of old 4-grams goes on until too many new ones have come, and is a loop when it
    is two periods long, the first copy not counted, and `min_tokens`. In 281 files of all kinds that people
    wrote there is none; without one fixed distance for all of a stretch, in some there is.
    """

    def __init__(self, first: int = 16, last: int = 400, min_tokens: int = 256, weight: int = WEIGHT) -> None:
        """first, last: periods, in tokens"""
        self._periods = np.arange(first, last + 1)
        self._enough = np.maximum(2 * self._periods, min_tokens)
        self._weight, self._from = weight, first - 1
        self._newest = np.full(last, -1)  # [last], the newest token first
        self._matches = np.zeros_like(self._periods)  # tokens in a row equal to one period ago
        self._saved = np.zeros_like(self._periods)  # old 4-grams, less the weight of new ones; 0: no stretch
        self._began = np.zeros_like(self._periods)  # tokens before the stretch, where there is one
        self._tokens = 0
        self._longest = (0, 0, 0)  # tokens, start, period

    def feed(self, token_id: int) -> Loop | None:
        """The loop that the output ends with now."""
        self._tokens += 1
        self._matches += 1
        self._matches *= self._newest[self._from :] == token_id
        self._newest[1:] = self._newest[:-1]
        self._newest[0] = token_id
        old = self._matches >= NGRAM
        self._began[self._saved == 0] = self._tokens - NGRAM
        self._saved += np.where(old, 1, -self._weight)
        np.clip(self._saved, 0, MOST, out=self._saved)
        stretches = self._tokens - self._began
        stretches *= old & (stretches >= self._enough)
        best = int(stretches.argmax())
        if not stretches[best]:
            return None
        period = int(self._periods[best])
        length = int(stretches[best]) + period
        self._longest = max(self._longest, (length, self._tokens - length, period))
        return Loop(period, self._tokens - length, length, True, near=True)

    @property
    def safe(self) -> int:
        """As `LoopWatch`."""
        running = self._began[self._saved > 0]
        waiting = self._tokens - min(int(self._matches.max()), NGRAM - 1)
        return min(waiting, int(running.min())) if len(running) else waiting

    def longest(self) -> Loop | None:
        """As `ExactWatch`."""
        tokens, start, period = self._longest
        return Loop(period, start, tokens, start + tokens == self._tokens, near=True) if tokens else None
