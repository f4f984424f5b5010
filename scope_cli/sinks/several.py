"""Events of several prompts in, those of one at a time out: for sinks that know of one output."""

from collections import defaultdict
from dataclasses import replace

from scope_cli.events import Event, Failed, Finished, PromptProgress, Started
from scope_cli.sinks.base import Sink

BETWEEN = "\n\n"  # two outputs on one stream


class Only:
    """What concerns one prompt, as if there were no other."""

    def __init__(self, prompt: int, sink: Sink) -> None:
        self._prompt, self._sink = prompt, sink
        self._started: Started | None = None

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            mine = slice(self._prompt, self._prompt + 1)
            self._started = replace(event, prompt_tokens=event.prompt_tokens[mine], seeds=event.seeds[mine])
        elif event.prompt == self._prompt:
            if self._started is not None:  # a prompt that an interrupted run never began has no record
                self._sink.receive(self._started)
                self._started = None
            self._sink.receive(event)

    def close(self) -> None:
        self._sink.close()


class InOrder:
    """One output after the other, in the order of the prompts: the first as it comes, the next when it is
    through, a blank line between them."""

    def __init__(self, sink: Sink) -> None:
        self._sink = sink
        self._turn = 0
        self._last = 0
        self._held: dict[int, list[Event]] = defaultdict(list)

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._last = len(event.prompt_tokens) - 1
            self._sink.receive(event)
        elif event.prompt != self._turn:
            if not isinstance(event, PromptProgress):
                self._held[event.prompt].append(event)
        elif isinstance(event, Finished | Failed) and event.prompt < self._last:
            if isinstance(event, Finished):
                event = replace(event, text=event.text + BETWEEN)
            self._sink.receive(event)
            self._turn += 1
            for held in self._held.pop(self._turn, []):
                self.receive(held)
        else:
            self._sink.receive(event)

    def close(self) -> None:
        """What was held back for its turn belongs to the text as well."""
        for prompt in sorted(self._held):
            for event in self._held[prompt]:
                self._sink.receive(event)
        self._sink.close()
