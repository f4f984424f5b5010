"""One event in for several sinks; events of several prompts in, those of one at a time out."""

from collections import defaultdict
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from types import TracebackType
from typing import Self

from scope_cli.events import Busy, Event, Failed, Finished, PromptProgress, Started
from scope_cli.sinks.base import Sink

BETWEEN = "\n\n"  # two outputs on one stream


class Every:
    """Each event for every sink. One that fails is left out from then on, and is told of when the others have
    got the event: a full disk takes nothing from them."""

    def __init__(self, *sinks: Sink) -> None:
        self._sinks = list(sinks)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """What already went wrong is not hidden behind what goes wrong while closing."""
        if error is None:
            self.close()
        else:
            with suppress(Exception, SystemExit):
                self.close()

    def receive(self, event: Event) -> None:
        self._each(lambda sink: sink.receive(event))

    def close(self) -> None:
        self._each(lambda sink: sink.close())

    def _each(self, act: Callable[[Sink], None]) -> None:
        failure: Exception | SystemExit | None = None
        for sink in list(self._sinks):
            try:
                act(sink)
            except (Exception, SystemExit) as error:  # rich makes a SystemExit of a broken pipe
                failure = failure or error
                self._sinks = [one for one in self._sinks if one is not sink]
                with suppress(Exception, SystemExit):
                    sink.close()
        if failure is not None:
            raise failure


class Only:
    """What concerns one prompt, as if there were no other."""

    def __init__(self, prompt: int, sink: Sink) -> None:
        self._prompt, self._sink = prompt, sink
        self._started: Started | None = None

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            mine = slice(self._prompt, self._prompt + 1)
            self._started = replace(event, prompt_tokens=event.prompt_tokens[mine], seeds=event.seeds[mine])
        elif isinstance(event, Busy):
            return
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
        self._pass_on(self._due(event))

    def _pass_on(self, events: list[Event]) -> None:
        """All of them, also where the sink fails on the way: it may stand for several (`Every`)."""
        failure: Exception | SystemExit | None = None
        for event in events:
            try:
                self._sink.receive(event)
            except (Exception, SystemExit) as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _due(self, event: Event) -> list[Event]:
        """What the sink gets now; noted before it does, because it may fail."""
        if isinstance(event, Started):
            self._last = len(event.prompt_tokens) - 1
        if isinstance(event, Started | Busy):
            return [event]
        if event.prompt != self._turn:
            if not isinstance(event, PromptProgress):
                self._held[event.prompt].append(event)
            return []
        if not isinstance(event, Finished | Failed) or event.prompt == self._last:
            return [event]
        self._turn += 1
        held = self._held.pop(self._turn, [])
        if isinstance(event, Finished):
            event = replace(event, text=event.text + BETWEEN)
        return [event, *(due for one in held for due in self._due(one))]

    def close(self) -> None:
        """What was held back for its turn belongs to the text as well."""
        held = [event for prompt in sorted(self._held) for event in self._held[prompt]]
        self._held.clear()
        try:
            self._pass_on(held)
        finally:
            self._sink.close()
