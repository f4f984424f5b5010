"""What a job has done so far in, rates and time left out: arithmetic alone."""

import time
from collections import deque
from collections.abc import Mapping

from scope_cli.batch.rows import State

WINDOW_S = 30.0


class Pace:
    """Tokens and rows of one process's run, and how long the rest of the job takes at this pace."""

    def __init__(self, counts: Mapping[State, int]) -> None:
        self.rows = sum(counts.values())
        self.done = counts["done"]
        self.failed = counts["failed"]
        self.began = time.monotonic()
        self.tokens = 0  # written by this run
        self.ended_tokens = 0  # of rows that ended in this run
        self.ended_rows = 0
        self._seen: deque[tuple[float, int]] = deque([(self.began, 0)])

    def wrote(self, tokens: int) -> None:
        self.tokens += tokens
        now = time.monotonic()
        if now - self._seen[-1][0] >= 0.5:
            self._seen.append((now, self.tokens))
        while len(self._seen) > 2 and now - self._seen[1][0] > WINDOW_S:
            self._seen.popleft()

    def ended(self, state: State, tokens: int) -> None:
        self.done += state == "done"
        self.failed += state == "failed"
        if state == "done":
            self.ended_rows += 1
            self.ended_tokens += tokens

    @property
    def elapsed_s(self) -> float:
        return time.monotonic() - self.began

    @property
    def tokens_per_s(self) -> float:
        """Over the last half minute, all lanes together."""
        since, first = self._seen[0]
        took = time.monotonic() - since
        return (self.tokens - first) / took if took > 0 else 0.0

    @property
    def usual_tokens(self) -> float | None:
        """How long an output of this run was on average; None before the first has ended."""
        return self.ended_tokens / self.ended_rows if self.ended_rows else None

    def left_s(self, tokens: float) -> float | None:
        """Seconds for so many tokens; None while nothing tells."""
        return max(0.0, tokens) / self.tokens_per_s if self.tokens_per_s > 0 else None
