"""Marked events in, the same without what the model thinks out: to one sink, and the thoughts aside."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from scope_cli.events import Event, Failed, Finished, Token
from scope_cli.sinks.base import Sink

Shown = Literal["show", "stderr", "hide"]
SHOWN: tuple[Shown, ...] = ("show", "stderr", "hide")


class WithoutThinking:
    """The blank lines between a thought and its answer belong to neither.

    aside: gets the text of the thoughts
    """

    def __init__(
        self, sink: Sink, aside: Callable[[str], None] = lambda text: None, just_thought: bool = False
    ) -> None:
        """just_thought: of one that goes on: it was so when another run ended"""
        self._sink, self._aside = sink, aside
        self._just_thought: dict[int, bool] = defaultdict(lambda: just_thought)  # by prompt: no answer yet

    @property
    def just_thought(self) -> bool:
        """Of the one prompt that it has met: no answer yet."""
        return any(self._just_thought.values())

    def receive(self, event: Event) -> None:
        if isinstance(event, Token | Finished | Failed):
            if event.thinking:
                self._just_thought[event.prompt] = True
                self._aside(event.text)
                event = replace(event, text="")
            elif self._just_thought[event.prompt]:
                event = replace(event, text=event.text.lstrip())
                if event.text:
                    self._just_thought[event.prompt] = False
                    self._aside("\n")
        self._sink.receive(event)

    def close(self) -> None:
        self._sink.close()
