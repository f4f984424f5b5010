"""How many generated tokens are allowed after n of them, and how many have to go: pure integers.

The strategies of SCOPE (arXiv 2412.13649, section 3.3) differ in `allowed` and `interval` alone.
W = budget, R = recent, H = W - R heavy hitters, T = planned output length, n = generated tokens written.
"""

from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

Strategy = Literal["full", "slide", "adaptive", "discontinuous", "rpc"]


@dataclass(frozen=True)
class Schedule:
    """When one lane evicts, and down to how many tokens.

    `base` and `floor` count what is limited beside generated tokens: with an unprotected prompt the limit is
    on everything held, and the sinks stay whatever happens.
    """

    strategy: Strategy
    budget: int
    recent: int
    interval: int
    planned: int  # T
    base: int = 0  # prompt tokens that the limit counts as well
    floor: int = 0  # of them, those that cannot be evicted
    total: int | None = None  # a limit on everything held, in place of base + allowed
    ratio: int = 4  # rpc: one generated token in `ratio` is kept

    @property
    def room(self) -> int:
        """Places that are neither recent tokens' nor sinks', once the whole budget is allowed."""
        limit = self.base + self.budget if self.total is None else self.total
        return limit - self.recent - self.floor

    @property
    def kept_by_score(self) -> int:
        """Tokens that the scorer has chosen among those that the last eviction leaves, at most."""
        last = self.limit(self.planned - 1)
        room = self.room if last is None else last - self.recent - self.floor
        return max(0, room - self.interval + 1)

    def allowed(self, n: int) -> int | None:
        """Generated tokens that may be held after n were written; None where nothing limits them."""
        if self.strategy == "full":
            return None
        if self.strategy == "slide":
            return self.budget
        if (
            self.strategy == "rpc"
        ):  # Reasoning Path Compression (arXiv 2505.13866): n / c, looked at every interval
            return self.recent + n // self.ratio + self.interval - 1
        if self.planned <= self.budget:
            return None
        heavy = self.budget - self.recent
        return min(self.budget, self.recent + max(0, n - self.recent) * heavy // (self.planned - self.recent))

    def excess(self, n: int, held: int) -> int:
        """How many tokens to evict now, with `held` of those that the limit counts.

        0 until more than the limit are held; then as many as make room for `interval` - 1 further tokens.
        """
        limit = self.limit(n)
        if limit is None or held <= limit:
            return 0
        return held - max(self.recent + self.floor, limit - self.interval + 1)

    def after(self, n: int, held: int) -> int:
        """What is held of what the limit counts once the n-th token is written; `held`: before it."""
        return held + 1 - self.excess(n, held + 1)

    def held(self, written: int) -> list[int]:
        """The same after 0, 1, ... `written` tokens."""
        return list(accumulate(range(1, written + 1), lambda held, n: self.after(n, held), initial=self.base))

    def limit(self, n: int) -> int | None:
        """The most that may be held of what the limit counts after n tokens; None where nothing limits it."""
        if self.strategy == "full":
            return None
        if self.total is not None:
            return self.total
        allowed = self.allowed(n)
        return None if allowed is None else self.base + allowed

    @property
    def never_evicts(self) -> bool:
        """Whether everything fits that will ever be held; the last token is not fed to the model."""
        limit = self.limit(self.planned)
        if limit is None:
            return True
        grows = self.strategy != "slide" and self.total is None  # and so is exceeded before it is all there
        return not grows and self.base + self.planned - 1 <= limit

    @property
    def most_held(self) -> int:
        """The most that is ever held of what the limit counts, the current token included."""
        if self.strategy == "full":
            return self.base + self.planned
        if self.total is not None:  # the whole prompt is read before the first eviction
            return min(max(self.base, self.total) + 1, self.base + self.planned)
        largest = self.allowed(self.planned)
        return self.base + min(self.planned if largest is None else largest + 1, self.planned)
