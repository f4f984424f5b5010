"""Pieces of text in, the events of a run that wrote them out."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace

import pytest

from scope_cli.events import (
    Audit,
    Event,
    Finished,
    PromptProgress,
    PromptRead,
    Started,
    Token,
)
from tests.helpers.readings import READING

EventsOfARun = Callable[..., list[Event]]


def _run(
    pieces: Iterable[str], held_back: str = "", planned: int = 4096, **finished: object
) -> Iterator[Event]:
    model = {
        "name": "tiny",
        "source": "a test",
        "dtype": "float32",
        "device": "cpu",
        "layers": 2,
        "context": 8192,
    }
    yield Started(
        1, (3210,), planned, "slide, budget 256", {"decode": {"budget": 256}}, model, {"scope": "0"}
    )
    yield PromptProgress(0, 1024, 3210)
    yield PromptRead(0, 3210, 5.6, 2**30, READING)
    n = 0
    for n, piece in enumerate(pieces, 1):
        yield Token(0, n, 100 + n, piece, -0.5, 0.05 * (n - 1), READING)
    audit = Audit(policy_active=True, budget_held=True, bytes_accounted=True)
    end = Finished(0, "length", held_back, 3210, 3210, n, 5.6, 0.05 * n, 2**30, 3 * 2**29, READING, audit)
    yield replace(end, **finished)


@pytest.fixture
def events_of_a_run() -> EventsOfARun:
    """`events_of_a_run(pieces, held_back, planned, **fields of Finished)`."""
    return lambda *args, **kwargs: list(_run(*args, **kwargs))
