"""A loop that was noticed in, the lane back where its copies begin out; they were never told.

Tokens wait until no loop can begin to repeat before them: in text that repeats nothing, those that happen to
stand as they stood a moment ago. Two snapshots are enough: the newest that is not younger than what has been
told, and one behind it. What lies between a snapshot and the place is fed again, not chosen again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from copy import copy, deepcopy
from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING, Any

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.loops import LoopWatch
from scope_cli.engine.plan import SNAPSHOTS
from scope_cli.engine.sampling import AS_SET, Change
from scope_cli.engine.state import LaneState, put_back, state_of
from scope_cli.engine.text import TextStream
from scope_cli.events import Loop, TakenBack, Token

if TYPE_CHECKING:
    from scope_cli.engine.decode import Lane

ATTEMPTS = 6  # at one loop; after that it ends the text
ANOTHER = 64  # tokens: a loop that begins so far behind the last one is another
EVERY = 64  # tokens from one snapshot to the next
WARM = 32  # tokens that are chosen at a higher temperature
WARMER = 0.25  # with each attempt
OF_LANE = ("ids", "generator")  # what of a lane is never taken back


@dataclass(frozen=True)
class Snapshot:
    """A lane between two steps, in memory of its own."""

    state: LaneState
    text: TextStream
    watch: LoopWatch

    @classmethod
    def of(cls, cache: ScopeCache, lane: Lane) -> Snapshot:
        state = state_of(cache, lane)
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items() if name not in OF_LANE}
        return cls(LaneState(tensors, state.numbers), copy(lane.text), deepcopy(lane.watch))

    @property
    def written(self) -> int:
        return int(self.state.numbers["written"])

    def put_back(self, cache: ScopeCache, lane: Lane) -> None:
        """What was done since is not counted; ids and generator stay."""
        cache.lanes[lane.row] = None
        put_back(cache, lane, self.state)
        lane.text, lane.watch = copy(self.text), deepcopy(self.watch)


@dataclass
class Rollback:
    """What one lane needs to be taken back."""

    told: int = 0  # tokens; they stay
    known: int = 0  # tokens that are fed again, not chosen
    found: Loop | None = None  # in what has been written, and not yet taken back
    place: int = 0  # the last one: tokens before it
    forbidden: tuple[int, ...] = ()  # there
    attempts: int = 0
    taken: tuple[TakenBack, ...] = ()
    _waiting: deque[Token] = field(default_factory=deque)
    _snapshots: list[Snapshot] = field(default_factory=list)  # at most SNAPSHOTS, the oldest first

    def place_of(self, loop: Loop) -> int:
        """So many tokens stay: up to the end of its first copy, and all that has been told."""
        return max(loop.start + loop.period, self.told)

    def allows(self, loop: Loop) -> bool:
        """Is another attempt left?"""
        return self.attempts < ATTEMPTS or self.place_of(loop) >= self.place + ANOTHER

    def feeds_again(self, written: int) -> bool:
        """Is a lane on its way from a snapshot to where it goes on?"""
        return written < self.known

    def change(self, at: int) -> Change:
        """For the token that `at` others stand before."""
        if not self.attempts or not self.place <= at < self.place + WARM:
            return AS_SET
        return Change(self.forbidden if at == self.place else (), WARMER * self.attempts)

    def tell(self, token: Token, safe: int) -> Iterator[Token]:
        """What is certain now. safe: tokens before which no loop can begin to repeat"""
        if token.n > max(self.told, self._waiting[-1].n if self._waiting else 0):  # else it is fed again
            self._waiting.append(token)
        while self._waiting and self._waiting[0].n <= safe:
            self.told = self._waiting[0].n
            yield self._waiting.popleft()

    def rest(self) -> Iterator[Token]:
        """The lane ends, and nothing is taken back any more."""
        while self._waiting:
            self.told = self._waiting[0].n
            yield self._waiting.popleft()

    @property
    def waiting_text(self) -> str:
        return "".join(token.text for token in self._waiting)

    def take_back(self, cache: ScopeCache, lane: Lane) -> TakenBack:
        """Between two steps, where a loop was found: put the lane back to where its first copy ends."""
        assert self.found is not None, "no loop was found"
        place = self.place_of(self.found)
        start = lane.prompt_ids.shape[1]
        token_id = int(lane.ids[0, start + place])
        self.forbidden = (*(self.forbidden if place == self.place else ()), token_id)
        self.attempts = 1 + (self.attempts if place < self.place + ANOTHER else 0)
        event = TakenBack(
            lane.row, lane.written - place, place, self.found.period, self.attempts, prompt=lane.prompt
        )
        self.place, self.found = place, None
        self.taken += (event,)
        while self._waiting and self._waiting[-1].n > place:
            self._waiting.pop()
        self._snapshots = [one for one in self._snapshots if one.written <= place]
        self._snapshots[-1].put_back(cache, lane)
        self.known = place
        return event

    def look(self, cache: ScopeCache, lane: Lane) -> None:
        """Between two steps: take a snapshot where it is time for one."""
        newest = self._snapshots[-1].written if self._snapshots else None
        if newest is None or (newest <= self.told and lane.written - newest >= EVERY):
            self._snapshots = [*self._snapshots[1 - SNAPSHOTS :], Snapshot.of(cache, lane)]

    def state(self, live: LaneState) -> LaneState:
        """Of the whole lane, for a checkpoint: a snapshot, and the ids that have been chosen since.

        live: the lane as it is now
        """
        base = [one for one in self._snapshots if one.written <= self.told][-1].state
        own = {name: live.tensors[name] for name in OF_LANE}
        now = {name: live.numbers[name] for name in ("reason", "elapsed_s")}
        known = max(self.known, live.numbers["written"])
        more = {"held_at": base.numbers["written"], "written": self.told, "known": known}
        return LaneState(base.tensors | own, base.numbers | now | more)

    def numbers(self) -> dict[str, Any]:
        """As JSON takes it."""
        return {
            "place": self.place,
            "forbidden": list(self.forbidden),
            "attempts": self.attempts,
            "taken": [asdict(one) for one in self.taken],
        }

    def go_on(self, state: LaneState) -> None:
        """From what `state` has given."""
        self.told, self.known = state.numbers["written"], state.known
        if told := state.numbers.get("rollback"):
            self.place, self.forbidden = told["place"], tuple(told["forbidden"])
            self.attempts, self.taken = told["attempts"], tuple(TakenBack(**one) for one in told["taken"])
