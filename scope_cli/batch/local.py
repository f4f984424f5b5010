"""Groups of rows in, each run on this machine's model, whatever one of them does."""

import gc
import traceback
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch

from scope_cli.batch.desk import Desk
from scope_cli.batch.groups import Group
from scope_cli.batch.runner import run_group
from scope_cli.batch.work import Work
from scope_cli.errors import ScopeError

if TYPE_CHECKING:
    from scope_cli.model import LoadedModel


def run_locally(loaded: "LoadedModel", desk: Desk, groups: list[Group], stop: Callable[[], bool]) -> None:
    """Every row that waits; groups one after the other, because each has a cache of its own."""
    for group in groups:
        while desk.waits(group) and not stop():
            group = run_one_group(loaded, desk, group, stop)


def run_one_group(loaded: "LoadedModel", desk: Desk, group: Group, stop: Callable[[], bool]) -> Group:
    """Run until no row of the group waits; the group, with fewer lanes where memory ran out.

    An error that cannot be blamed on one row puts all that were running back, and they are tried one by one
    in the same rectangle of lanes: that gives the same texts, and shows which of them it was.
    """
    desk.groups_run.append(group)
    trouble = attempt(loaded, desk, group, desk.works_of(group), stop)
    if trouble is None:
        return group
    suspects = list(desk.running)
    if isinstance(trouble, OutOfMemory):
        return fewer_lanes(desk, group, suspects, trouble)
    if len(suspects) > 1:
        desk.put_back(suspects)
        desk.board.say(f"{trouble}: trying the {len(suspects)} prompts that were running one by one")
        for number in suspects:
            if stop():
                break
            work = desk.take(group, number)
            alone = attempt(loaded, desk, group, iter([work] if work else []), stop)
            if isinstance(alone, OutOfMemory):
                return fewer_lanes(desk, group, list(desk.running), alone)
            if alone is not None:
                blame(desk, alone)
    else:
        blame(desk, trouble)
    return group


class Trouble(Exception):
    """What went wrong while a group ran: the last line of a traceback, and all of it."""

    def __init__(self, error: BaseException) -> None:
        said = str(error).strip().partition("\n")[0]
        super().__init__(f"{type(error).__name__}: {said}" if said else type(error).__name__)
        self.detail = "".join(traceback.format_exception(error))


class OutOfMemory(Trouble):
    pass


def attempt(
    loaded: "LoadedModel", desk: Desk, group: Group, works: Iterator[Work], stop: Callable[[], bool]
) -> Trouble | None:
    """Run rows to their ends; what broke it off. Errors of the desk itself (a full disk) are not caught."""
    events = run_group(loaded, group, works, stop)
    while True:
        try:
            number, event = next(events)
        except StopIteration:
            return None
        except (ScopeError, torch.AcceleratorError):  # the disk; a GPU that is of no more use to this process
            raise
        except Exception as error:
            return OutOfMemory(error) if is_out_of_memory(error) else Trouble(error)
        desk.receive(number, event)


def is_out_of_memory(error: Exception) -> bool:
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def fewer_lanes(desk: Desk, group: Group, suspects: list[int], trouble: OutOfMemory) -> Group:
    """Half the lanes, and the rows that were running once more; with one lane, the row has failed."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    if group.lanes == 1:
        for number in suspects:
            desk.fail(number, f"out of memory with a single lane ({trouble})", trouble.detail)
        return group
    lanes = group.lanes // 2
    desk.put_back(suspects)
    desk.reduce(group, f"memory ran out with {group.lanes} lanes: {lanes} from here on")
    return group.with_lanes(lanes)


def blame(desk: Desk, trouble: Trouble) -> None:
    for number in list(desk.running):
        desk.fail(number, str(trouble), trouble.detail)
