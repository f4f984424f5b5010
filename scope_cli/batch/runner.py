"""A group's tasks in, their events out; each event names its row in `prompt`."""

from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from scope_cli.batch.groups import Group
from scope_cli.batch.reasons import in_words
from scope_cli.batch.work import Task
from scope_cli.engine.decode import Admission, decode
from scope_cli.engine.run import Run
from scope_cli.engine.run_plan import RunPlan
from scope_cli.engine.state import Keep
from scope_cli.errors import is_out_of_memory
from scope_cli.events import Event, Failed
from scope_cli.models.model import LoadedModel
from scope_cli.settings.schema import Profile


def run_group(
    loaded: LoadedModel,
    profile: Profile,
    group: Group,
    tasks: Iterator[Task],
    interrupted: Callable[[], bool],
    tell: Callable[[str], None],
    keep: Keep | None = None,
) -> Iterator[Event]:
    """Run tasks as they come, `group.lanes` at a time; another is asked for whenever a lane is free.

    A task that cannot be read, or whose text cannot be taken, ends as `Failed` while the others go on. What
    cannot be blamed on one task is raised, and so is the end of memory. keep: is given the lanes' states
    """
    in_row: dict[int, int] = {}  # which task a row of the cache has
    shape = group.shape
    if group.alone:  # every prompt makes slots of its own size
        shape = replace(shape, prompt_slots=(0,) * len(shape.prompt_slots))
    compiling: set[str] = set()

    def busy(what: str) -> None:
        if what not in compiling:  # every graph of the step is told of
            compiling.add(what)
            tell(f"{what} ...")

    plan = RunPlan(profile, (), shape, group.compiled)  # its prompts come one by one
    with Run.of(plan, loaded, tell, busy, keep) as run:

        def admit(row: int) -> Admission | None:
            task = next(tasks, None)
            if task is None:
                return None
            in_row[row] = task.number
            return run.read(task.work, task.number, row, interrupted)

        def fail(row: int, error: Exception) -> Event:
            if is_out_of_memory(error) or isinstance(error, torch.AcceleratorError):
                raise error
            return Failed(row, in_words(error), in_row[row])

        yield from decode(run.step, run.cache, admit, run.finish, interrupted, fail, between=run.between)
