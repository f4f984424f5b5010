"""Contenders in, rows of measurements out: starts their processes, steps them in turn, closes them. No torch.

One burst is some steps of one contender. A round is a burst of every contender, so that all meet the same
noise; a ratio is taken within a round. The value of a burst is its mean, because an eviction is part of the
cost; that of a position is the median of its bursts.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from scope_cli.machine.setup import as_the_user_has_it
from scope_cli.measure.bench.protocol import Ids, Job
from scope_cli.measure.child import Child, NoAnswer

Say = Callable[[str], None]


@dataclass(frozen=True)
class Spec:
    """Who takes part: what to start, and what is different from the others' job."""

    name: str
    command: tuple[str, ...]
    lanes: int | None = None


@dataclass(frozen=True)
class Course:
    """What all of them do."""

    job: Job
    prompt: tuple[int, ...]
    known: tuple[int, ...]  # what follows the prompt, as far as the last position
    positions: tuple[int, ...]
    burst: int = 64
    rounds: int = 5
    write: bool = False  # get to each position by writing, not by being fed what is known
    apart: bool = False  # a process for each position, so that positions meet the same noise as well
    sequential: bool = False  # one process at a time
    timeout_s: float = 900.0

    def start(self, position: int) -> int:
        """Where the bursts begin that end at `position`, the one that is not counted among them."""
        return max(len(self.prompt), position - self.burst * (self.rounds + 1))


@dataclass
class Measured:
    """One contender at one position."""

    position: int
    step_ms: list[float] = field(default_factory=list)  # of each burst, its mean
    read_s: list[float] = field(default_factory=list)  # the prompt, each time that it was read
    next_ids: list[list[int]] = field(default_factory=list)  # [lanes], after the prompt; after what was fed
    prefill_peak_bytes: int = 0
    decode_peak_bytes: int = 0
    held_bytes: int | None = None
    read_bytes: int | None = None
    moved_bytes: int | None = None  # in the bursts that are counted


@dataclass
class Standing:
    """All that is known of one contender."""

    name: str
    lanes: int = 1
    policy: str = ""
    exact: bool = False
    versions: dict[str, str] = field(default_factory=dict)
    weight_bytes: int = 0
    failed: str | None = None
    positions: list[Measured] = field(default_factory=list)

    def at(self, position: int) -> Measured | None:
        return next((one for one in self.positions if one.position == position and one.step_ms), None)


class Seat:
    """A contender's process with the positions it is measured at."""

    def __init__(self, spec: Spec, course: Course, row: Standing) -> None:
        self.spec, self.course, self.row = spec, course, row
        self.process: Child | None = None
        self.position = 0
        self.lanes = spec.lanes or course.job.lanes

    def open(self) -> None:
        self.process = started(self.spec.command, self.course.timeout_s, in_turn=True)
        loaded = self.ask("load", job=asdict(replace(self.course.job, lanes=self.lanes)))
        row = self.row
        row.policy, row.exact, row.lanes = loaded["policy"], loaded["exact"], self.lanes
        row.versions, row.weight_bytes = loaded["versions"], loaded["weight_bytes"]

    def ask(self, op: str, **request: Any) -> dict[str, Any]:
        assert self.process is not None, "it was not opened"
        return ask(self.process, op, **request)

    def go_to(self, position: int) -> Measured:
        """Be where the bursts begin that end at `position`."""
        course, start = self.course, self.course.start(position)
        measured = Measured(position)
        if not (course.write and self.position):
            read = self.ask("read", ids=rotated(course.prompt, self.lanes))
            measured.read_s.append(read["elapsed_s"])
            measured.next_ids.append(read["next"])
            measured.prefill_peak_bytes = read["peak_bytes"]
            self.position = len(course.prompt)
        if course.write:
            while self.position < start:
                self.step(min(course.burst, start - self.position))
        elif start > self.position:
            fed = start - self.position
            known = [list(course.known[:fed])] * self.lanes
            measured.next_ids.append(self.ask("advance", ids=known)["next"])
            self.position = start
        return measured

    def step(self, count: int) -> dict[str, Any]:
        self.position += count
        return self.ask("step", count=count)

    def kill(self) -> None:
        """Nobody waits for what it is doing."""
        if self.process is not None:
            self.process.kill()

    def close(self) -> None:
        if self.process is not None:
            self.process.close()
            self.process = None


def started(command: Sequence[str], timeout_s: float, in_turn: bool = False) -> Child:
    """A contender's process."""
    return Child(command, {**as_the_user_has_it(), "HF_HUB_OFFLINE": "1"}, timeout_s, in_turn=in_turn)


def ask(process: Child, op: str, **request: Any) -> dict[str, Any]:
    """protocol.py's question and answer. Raises NoAnswer, also where the contender says that it cannot."""
    answer = process.ask({"op": op, **request})
    if "error" in answer:
        raise NoAnswer(answer["error"].partition("\n")[0])
    return answer


def rotated(prompt: tuple[int, ...], lanes: int) -> Ids:
    """A prompt for each lane, all different: nobody may read once what has to be read in every lane."""
    by = max(1, len(prompt) // max(lanes, 1))
    return [list(prompt[lane * by :] + prompt[: lane * by]) for lane in range(lanes)]


def contest(specs: list[Spec], rows: list[Standing], course: Course, say: Say = lambda line: None) -> None:
    """Measure everybody everywhere into their rows; who fails is a row that says why, and the others go on.

    Where the run is interrupted, the rows have what was measured until then.
    """
    try:
        for group in _groups(specs, course, {row.name: row for row in rows}):
            seats = {id(seat): seat for wave in group for seat, _ in wave}.values()
            try:
                _measure(group, course, say)
            except KeyboardInterrupt:
                for seat in seats:
                    seat.kill()
                raise
            finally:
                for seat in seats:
                    seat.close()
    finally:
        for row in rows:
            row.positions.sort(key=lambda measured: measured.position)


Wave = list[tuple[Seat, int]]


def _groups(specs: list[Spec], course: Course, rows: Mapping[str, Standing]) -> Iterator[list[Wave]]:
    """What is alive at the same time: waves one after the other, each stepped in turn."""

    def seat(spec: Spec) -> Seat:
        return Seat(spec, course, rows[spec.name])

    if course.sequential:
        for spec in specs:
            one = seat(spec)
            yield [[(one, position)] for position in course.positions]
    elif course.apart:
        yield [[(seat(spec), position) for position in course.positions for spec in specs]]
    else:
        seats = [seat(spec) for spec in specs]
        yield [[(one, position) for one in seats] for position in course.positions]


def _measure(waves: list[Wave], course: Course, say: Say) -> None:
    for wave in waves:
        there: list[tuple[Seat, Measured]] = []
        for seat, position in wave:
            if seat.row.failed:
                continue
            say(f"{seat.spec.name}: on the way to position {position:,}")
            with _failure_told(seat, say):
                if seat.process is None:
                    seat.open()
                there.append((seat, seat.go_to(position)))
                seat.row.positions.append(there[-1][1])
        alive = sum(not seat.row.failed for seat, _ in there)
        say(f"{course.rounds} rounds of {course.burst} steps, {alive} in turn")
        for round_ in range(course.rounds + 1):
            for seat, measured in there:
                if not seat.row.failed:
                    with _failure_told(seat, say):
                        _burst(seat, measured, course, counted=round_ > 0)


def _burst(seat: Seat, measured: Measured, course: Course, counted: bool) -> None:
    """One burst; the first of a position warms up, and whatever is compiled is compiled then."""
    answer = seat.step(course.burst)
    if not counted:
        return
    measured.step_ms.append(1000 * answer["elapsed_s"] / course.burst)
    measured.decode_peak_bytes = max(measured.decode_peak_bytes, answer["peak_bytes"])
    measured.held_bytes, measured.read_bytes = answer["held_bytes"], answer["read_bytes"]
    if answer["moved_bytes"] is not None:
        measured.moved_bytes = (measured.moved_bytes or 0) + answer["moved_bytes"]


@contextmanager
def _failure_told(seat: Seat, say: Say) -> Iterator[None]:
    """Who fails is out, with the reason."""
    try:
        yield
    except NoAnswer as error:
        seat.row.failed = str(error)
        say(f"{seat.spec.name}: failed: {error}")
        seat.close()
