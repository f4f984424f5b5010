"""The Sink protocol, and what several sinks do with an event: its text, as UTF-8."""

from typing import Protocol, TextIO

from scope_cli.events import Event, Failed, Finished, Token


class Sink(Protocol):
    """A place where events go."""

    def receive(self, event: Event) -> None: ...

    def close(self) -> None:
        """Called once at the end, also when the run broke off before `Finished`."""


def text_of(event: Event) -> str:
    """What the event adds to the text."""
    return event.text if isinstance(event, Token | Finished | Failed) else ""


def write_utf8(stream: TextIO, text: str) -> None:
    """Write and flush, in UTF-8 whatever the locale says; a stream of no bytes takes the text itself."""
    buffer = getattr(stream, "buffer", None)
    if buffer is None:
        stream.write(text)
    else:
        buffer.write(text.encode())
    stream.flush()
