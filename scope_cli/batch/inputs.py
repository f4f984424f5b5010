"""One prompt as it was found, an Input; what is wrong with it is said there.

Nothing raises for a bad prompt: a job goes on without it. Every Input has an id of its own.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Input:
    """One prompt as it was found; with a `problem` it cannot be run, and the rest may be missing."""

    id: str  # the path below the directory, or what the line calls itself
    source: str  # where it stands, for people
    content_hash: str = ""
    text: str = ""
    messages: tuple[dict[str, Any], ...] = ()  # in place of the text
    system: str | None = None
    sampling: dict[str, Any] = field(default_factory=dict)  # lies over the profile's
    template_args: dict[str, Any] = field(default_factory=dict)  # likewise
    meta: Any = None  # handed through to the results
    model: str = ""  # that the line asks for; every line is run with the job's
    problem: str | None = None


@dataclass(frozen=True)
class PromptFrame:
    """What goes around every text: a template with {text} in it, and something behind."""

    template: str | None = None
    suffix: str = ""

    def around(self, text: str) -> str:
        return (text if self.template is None else self.template.replace("{text}", text)) + self.suffix


def fenced(found: Input, read: Callable[[Input, Any], Input], source: Any) -> Input:
    """What nobody thought of is the problem of one prompt as well."""
    try:
        return read(found, source)
    except Exception as error:
        return replace(found, problem=f"cannot be read: {type(error).__name__}: {error}")


def renamed(inputs: Iterable[Input], taken: set[str]) -> Iterator[Input]:
    """Inputs whose ids were made up, each with one that nobody else has: 'line-3 (a)', 'line-3 (a)-2'.

    They come last: an id that somebody gave is never in the way of one that was made up.
    """
    for one in inputs:
        own, number = one.id, 1
        while own in taken:
            number += 1
            own = f"{one.id}-{number}"
        taken.add(own)
        yield replace(one, id=own)


def hash_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
