"""Where half-written rows are: OUT/.scope/states/NUMBER.state, beside the ledger that says whose they are.

Whoever takes a row goes on from its state: the same process later, another one, or a Ray worker.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.batch.groups import Group
from scope_cli.batch.ledger import Ledger
from scope_cli.batch.presence import FOLDER
from scope_cli.batch.rows import Row
from scope_cli.batch.writer import PartFile, part_of
from scope_cli.engine.cadence import Cadence
from scope_cli.engine.checkpoint import Checkpoint, Refused, read_facts, remove_checkpoint, write_checkpoint
from scope_cli.errors import ScopeError

if TYPE_CHECKING:
    from scope_cli.engine.state import LaneState
    from scope_cli.models.model import OpenedModel

Say = Callable[[str], None]


def state_file(out: Path, number: int) -> Path:
    return out / FOLDER / "states" / f"{number}.state"


@dataclass(frozen=True)
class GoesOn:
    """A row's state that may be taken up, and how much of NAME.part belongs to it."""

    read: Callable[[], LaneState]
    end: int  # bytes
    tokens: int


class RowStates:
    """Of one process's share of a job."""

    def __init__(self, out: Path, opened: OpenedModel, settings_hash: str, say: Say) -> None:
        self._out, self._opened, self._settings_hash, self._say = out, opened, settings_hash, say
        self._model: str | None = None
        self._warned = False
        self._widths: dict[int, int] = {}

    def find(self, row: Row, group: Group) -> GoesOn | None:
        """Where a row goes on; None where it has to begin anew: whatever differs would change its text."""
        from scope_cli.engine.state import lane_in, text_so_far

        file = state_file(self._out, row.number)
        if not file.is_file():
            return None
        try:
            facts = read_facts(file)
            if facts["key"] != self._key(row, group) or not facts["lane"]:
                return None
            state = lane_in(file)
            written = part_of(self._out / row.output).read_bytes()[: facts["end"]]
            if text_so_far(self._opened.tokenizer, state, tuple(facts["stops"])).encode() != written:
                return None
        except (OSError, Refused, KeyError, TypeError):
            return None
        return GoesOn(partial(lane_in, file), facts["end"], facts["lane"]["written"])

    def keep(self, row: Row, group: Group, file: PartFile, state: LaneState, stops: tuple[str, ...]) -> None:
        """Raises nothing: a row goes on without."""
        facts = {
            "key": self._key(row, group),
            "end": file.bytes,
            "stops": list(stops),
            "lane": state.numbers,
        }
        path, width = state_file(self._out, row.number), self._widths.get(row.number, 0)
        try:
            file.sync()
            path.parent.mkdir(parents=True, exist_ok=True)
            self._widths[row.number] = write_checkpoint(path, Checkpoint(facts, state.tensors), width)
        except (OSError, ScopeError) as error:
            why = error.strerror if isinstance(error, OSError) else error
            if not self._warned:
                self._say(f"warning: cannot keep where rows are: {why}; they are written on without")
            self._warned = True

    def drop(self, number: int) -> None:
        self._widths.pop(number, None)
        file = state_file(self._out, number)
        remove_checkpoint(file)
        with suppress(OSError):  # unless it has others
            file.parent.rmdir()

    def _key(self, row: Row, group: Group) -> dict[str, Any]:
        """All that has to be the same, as JSON has it."""
        from scope_cli.engine.facts import versions
        from scope_cli.models.fingerprint import fingerprint

        self._model = self._model or fingerprint(self._opened.folder)
        shape = group.shape
        return {
            "row": row.id,
            "content": row.content_hash,
            "settings": self._settings_hash,
            "sampling": row.sampling,
            "seed": row.seed,
            "model": self._model,
            "runs_on": [str(self._opened.device), str(self._opened.dtype), self._opened.load_in],
            "versions": versions(),
            "slots": [] if group.alone else list(shape.prompt_slots),
            "sizes": [shape.evictable, shape.context, shape.ring, group.compiled],
        }


def how_far(out: Path, number: int) -> int:
    """Tokens of a row that its state has; 0 where it has none."""
    try:
        return int(read_facts(state_file(out, number))["lane"]["written"])
    except (Refused, KeyError, TypeError, ValueError):
        return 0


def sweep_states(ledger: Ledger, out: Path) -> None:
    """States of rows that are through, or not of this job any more."""
    wanted = {state_file(out, row.number) for row in ledger.rows("waiting", "interrupted", "running")}
    for file in state_file(out, 0).parent.glob("*.state*"):
        if file not in wanted:
            file.unlink(missing_ok=True)


class Keeper:
    """Who runs rows gives their states to `give`, as often as costs a hundredth of the time."""

    ends = False

    def __init__(self, give: Callable[[int, LaneState], None], every_s: float | None = None) -> None:
        self._give, self._cadence = give, Cadence(every_s)

    def due(self) -> bool:
        return self._cadence.due()

    def saving(self) -> AbstractContextManager[None]:
        return self._cadence.saving()

    def take(self, number: int, state: LaneState) -> None:
        self._give(number, state)
