"""Token ids in, the longest repeating stretch out."""

import numpy as np

from scope_cli.events import Loop


class LoopWatch:
    """Notices when an output repeats itself; a token costs O(max_period), however long the output is."""

    def __init__(self, max_period: int = 128, min_copies: int = 4, min_tokens: int = 64) -> None:
        """A loop is `min_copies` copies of at most `max_period` tokens, and `min_tokens` in all."""
        self._periods = np.arange(1, max_period + 1)
        self._enough = np.maximum(min_copies * self._periods, min_tokens)
        self._newest = np.full(max_period, -1)  # [max_period], the newest token first
        self._matches = np.zeros_like(self._newest)  # [max_period], tokens in a row equal to one period ago
        self._tokens = 0
        self._longest = (0, 0, 0)  # tokens, start, period

    def feed(self, token_id: int) -> bool:
        """Is the tail of the output a loop now?"""
        self._tokens += 1
        self._matches += 1
        self._matches *= self._newest == token_id
        self._newest[1:] = self._newest[:-1]
        self._newest[0] = token_id
        stretches = self._matches + self._periods  # the first copy matches nothing
        stretches *= stretches >= self._enough
        best = int(stretches.argmax())  # the smallest period among equals
        length = int(stretches[best])
        if length:
            self._longest = max(self._longest, (length, self._tokens - length, best + 1))
        return length > 0

    def longest(self) -> Loop | None:
        """The longest stretch so far with its smallest period, the later one among equals."""
        tokens, start, period = self._longest
        return Loop(period, start, tokens, start + tokens == self._tokens) if tokens else None
