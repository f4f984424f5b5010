"""A group's prompts in, their events out, each with the number of its prompt: the seam to the model."""

from collections.abc import Callable, Iterator
from time import perf_counter

from scope_cli.batch.groups import Group
from scope_cli.batch.work import Work
from scope_cli.events import Event
from scope_cli.generate import generate
from scope_cli.model import LoadedModel


def run_group(
    loaded: LoadedModel, group: Group, works: Iterator[Work], interrupted: Callable[[], bool]
) -> Iterator[tuple[int, Event]]:
    """Run prompts as they come, `group.lanes` at a time; another is asked for whenever a lane is free."""
    for work in works:
        began = perf_counter()

        def over() -> bool:
            late = work.max_seconds is not None and perf_counter() - began > work.max_seconds  # noqa: B023
            return late or interrupted()

        for event in generate(loaded, work.settings.profile, work.prompt_ids, work.plan, over):
            yield work.prompt, event
