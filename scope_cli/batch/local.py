"""Groups of rows in, each run on this machine's model, whatever one of them does."""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from scope_cli.batch.desk import Desk
from scope_cli.batch.fit import Memory, check_weights, even
from scope_cli.batch.groups import Group
from scope_cli.batch.reasons import UNSTOPPABLE, in_words, reason_and_detail
from scope_cli.batch.runner import run_group
from scope_cli.batch.work import Task
from scope_cli.batch.workspace import measure
from scope_cli.engine.slots_check import slots_of
from scope_cli.errors import ScopeError, is_out_of_memory
from scope_cli.machine.memory import free_bytes
from scope_cli.settings.load import LoadedProfile
from scope_cli.units import counted

if TYPE_CHECKING:
    from scope_cli.models.model import LoadedModel, OpenedModel


class LocalEngine:
    """This machine's model, read when it is first needed."""

    def __init__(self, opened: "OpenedModel") -> None:
        self.opened = opened
        self._loaded: LoadedModel | None = None
        self._free_bytes: int | None = None

    def free_bytes(self) -> int:
        """Before the weights were read."""
        if self._free_bytes is None:
            self._free_bytes = free_bytes(self.opened.device)
        return self._free_bytes

    def loaded(self) -> "LoadedModel":
        if self._loaded is None:
            check_weights(self.opened, self.free_bytes())
            self._loaded = self.opened.load()
        return self._loaded

    def slots(self, settings: LoadedProfile) -> tuple[LoadedProfile, str | None]:
        """With what `auto` comes to for the model, whatever the prompts are; reads the weights."""
        return slots_of(self.loaded(), settings)

    def measure(self, settings: LoadedProfile, prompt_tokens: int, new_tokens: int) -> Memory:
        """What the model takes beside weights and cache; reads the weights."""
        return measure(self.loaded(), settings, prompt_tokens, new_tokens, self.free_bytes())

    def run(self, desk: Desk, groups: list[Group], stop: Callable[[], bool]) -> None:
        """Every row that waits; groups one after the other, because each has a cache of its own."""
        for group in groups:
            while desk.waits(group) and not stop():
                group = run_one_group(self.loaded(), desk, group, stop)

    def close(self) -> None:
        """The model goes with the process."""


def run_one_group(loaded: "LoadedModel", desk: Desk, group: Group, stop: Callable[[], bool]) -> Group:
    """Run until no row of the group waits; the group, with fewer lanes where memory ran out.

    An error that cannot be blamed on one row puts all that were running back, and they are tried one by one
    in the same rectangle of lanes: that gives the same texts, and shows which of them it was.
    """
    desk.groups_run.append(group)
    trouble = attempt(loaded, desk, group, desk.tasks_of(group), stop)
    if trouble is None:
        return group
    suspects = list(desk.running)
    if trouble.out_of_memory:
        return fewer_lanes(desk, group, suspects, trouble)
    if len(suspects) > 1:
        desk.put_back(suspects)
        desk.board.say(f"{trouble.reason}: trying the {len(suspects)} prompts that were running one by one")
        for number in suspects:
            if stop():
                break
            task = desk.take(group, number)
            alone = attempt(loaded, desk, group, iter([task] if task else []), stop)
            if alone is not None and alone.out_of_memory:
                return fewer_lanes(desk, group, list(desk.running), alone)
            if alone is not None:
                blame(desk, alone)
    else:
        blame(desk, trouble)
    return group


@dataclass(frozen=True)
class Trouble:
    """What broke a group off: in one line, and its traceback."""

    reason: str
    detail: str
    out_of_memory: bool


def attempt(
    loaded: "LoadedModel", desk: Desk, group: Group, tasks: Iterator[Task], stop: Callable[[], bool]
) -> Trouble | None:
    """Run tasks to their ends; what broke it off. Errors of the desk itself (a full disk) are not caught."""
    events = run_group(loaded, desk.profile, group, tasks, stop, desk.board.say, desk.keeper)
    while True:
        try:
            event = next(events)
        except StopIteration:
            return None
        except UNSTOPPABLE:
            raise
        except BaseException as error:
            if is_out_of_memory(error):
                nobody = not desk.running and group.lanes == 1
            else:  # told already: a full disk, say; a GPU of no more use to this process; no row to blame
                nobody = isinstance(error, ScopeError | torch.AcceleratorError) or not desk.running
            if nobody:
                raise
            return trouble_of(error)
        desk.receive(event)


def trouble_of(error: BaseException) -> Trouble:
    return Trouble(*reason_and_detail(in_words(error)), out_of_memory=is_out_of_memory(error))


def fewer_lanes(desk: Desk, group: Group, suspects: list[int], trouble: Trouble) -> Group:
    """Half the lanes, and the rows that were running once more; with one lane, the row has failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if group.lanes == 1:
        for number in suspects:
            desk.fail(number, f"out of memory with a single lane ({trouble.reason})", trouble.detail)
        return group
    desk.put_back(suspects)
    return halve_lanes(desk, group)


def halve_lanes(desk: Desk, group: Group) -> Group:
    lanes = even(group.lanes // 2)
    desk.reduce(group, lanes, f"memory ran out with {counted(group.lanes, 'lane')}: {lanes} from here on")
    return group.with_lanes(lanes)


def blame(desk: Desk, trouble: Trouble) -> None:
    for number in list(desk.running):
        desk.fail(number, trouble.reason, trouble.detail)
