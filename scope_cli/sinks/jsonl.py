"""Events in, one JSON object a line out: for scripts; docs/reference/events.md describes each."""

from collections import defaultdict
from dataclasses import asdict
from typing import Any, TextIO

from scope_cli.console.safe import as_json
from scope_cli.events import (
    Busy,
    Event,
    Failed,
    Finished,
    PromptProgress,
    PromptRead,
    Started,
    TakenBack,
    Token,
)
from scope_cli.sinks.base import text_of, write_utf8

EVENT_NAMES: dict[type[Event], str] = {
    Started: "started",
    Busy: "busy",
    PromptProgress: "prompt_progress",
    PromptRead: "prompt_read",
    Token: "token",
    TakenBack: "taken_back",
    Finished: "finished",
    Failed: "failed",
}
TOKEN_READINGS = ("held_bytes", "full_bytes", "evictions")  # the rest is in prompt_read and finished


class JsonLines:
    def __init__(self, stdout: TextIO) -> None:
        self._stdout = stdout
        self._texts: dict[int, list[str]] = defaultdict(list)  # by prompt, in pieces

    def receive(self, event: Event) -> None:
        fields = as_object(event)
        if isinstance(event, Token | Finished):
            self._texts[event.prompt].append(text_of(event))
        if isinstance(event, Finished):
            fields["full_text"] = "".join(self._texts.pop(event.prompt))
        write_utf8(self._stdout, as_json(fields) + "\n")

    def close(self) -> None:
        """Every line was flushed when it came."""


def as_object(event: Event) -> dict[str, Any]:
    """The event's name and its fields; a token's reading is cut down to three numbers beside them."""
    name = {"event": EVENT_NAMES[type(event)]}
    if not isinstance(event, Token):
        return name | asdict(event)
    fields = name | vars(event)
    reading = fields.pop("reading")
    return fields | {key: getattr(reading, key) for key in TOKEN_READINGS}
