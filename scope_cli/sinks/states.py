"""Lanes' states in, FILE.state beside each text out; gone when the text is through.

It is a sink, and who keeps states for the engine: what a state says of its text is what the text's sink has
written.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.engine.cadence import Cadence
from scope_cli.engine.checkpoint import Checkpoint, remove_checkpoint, write_checkpoint
from scope_cli.errors import ScopeError
from scope_cli.events import Event, Finished, Started, Token
from scope_cli.sinks.textfile import TextFile
from scope_cli.sinks.thinking import WithoutThinking

if TYPE_CHECKING:
    from scope_cli.engine.run import Work
    from scope_cli.engine.state import LaneState

STATE = ".state"


def state_of(output: Path) -> Path:
    """Beside a text, where its lane is."""
    return output.with_name(f"{output.name}{STATE}")


@dataclass
class Text:
    """One text of a run."""

    file: TextFile
    path: Path
    facts: dict[str, Any]  # what its state says beside the lane's own numbers
    answer: WithoutThinking
    width: int = 0  # bytes of the numbers in its state
    begun: bool = False  # it has a state
    through: bool = False


class States:
    """every_s: seconds between two; None: as often as costs a hundredth of the time.

    keeps: those of texts that are through stay as well; warn: is told once where no state can be written
    """

    def __init__(
        self,
        every_s: float | None = None,
        keeps: bool = False,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        self.ends = keeps
        self._texts: dict[int, Text] = {}  # by the number of their prompt
        self._prompts: list[list[int]] = []
        self._cadence = Cadence(every_s)
        self._warn, self._warned = warn, False

    def add(
        self,
        prompt: int,
        file: TextFile,
        path: Path,
        facts: dict[str, Any],
        answer: WithoutThinking,
    ) -> None:
        """A text that states are kept of; facts: of its own, and of one that goes on all its state said.

        answer: between the run and the file, where thoughts are not written
        """
        text = facts.get("text", {"start": file.end}) | {"name": path.name}
        self._texts[prompt] = Text(file, path, facts | {"text": text}, answer, begun="run" in facts)

    def begin(self, facts: dict[str, Any], works: Sequence[Work]) -> None:
        """Before anything is read; facts: what all texts of the run have in common."""
        self._prompts = [work.prompt_ids for work in works]
        new = {"run": uuid.uuid4().hex, "names": [text.path.name for text in self._texts.values()]}
        for number, text in self._texts.items():
            text.facts = new | {"number": number} | text.facts | facts

    def _start(self, event: Started) -> None:
        """A text that has no state yet gets one that begins with its prompt."""
        import torch

        for number, text in self._texts.items():
            text.facts |= {"depends_on": event.depends_on, "versions": event.versions}
            text.facts["seed"] = event.seeds[number]
            if not text.begun:
                self._write(text, None, {"ids": torch.tensor(self._prompts[number], dtype=torch.int32)})

    def due(self) -> bool:
        return self._cadence.due()

    def saving(self) -> AbstractContextManager[None]:
        return self._cadence.saving()

    def take(self, number: int, state: LaneState) -> None:
        if number in self._texts:
            self._write(self._texts[number], state.numbers, state.tensors)

    def receive(self, event: Event) -> None:
        if isinstance(event, Started):
            self._start(event)
        elif isinstance(event, Finished) and event.reason != "interrupted" and event.audit.passed:
            text = self._texts.get(event.prompt)
            if text is None:
                return
            text.through = True
            if not self.ends:
                text.file.sync()
                remove_checkpoint(state_of(text.path))

    def close(self) -> None:
        """What is there stays."""

    def has(self, prompt: int) -> bool:
        """Is the state beside this text its own?"""
        return self._texts[prompt].begun

    @property
    def left(self) -> list[Path]:
        """Texts that are not through and can be gone on with."""
        return [
            text.path for text in self._texts.values() if not text.through and state_of(text.path).is_file()
        ]

    def _write(self, text: Text, numbers: dict[str, Any] | None, tensors: dict[str, Any]) -> None:
        now = {"end": text.file.end, "just_thought": text.answer.just_thought}
        facts = text.facts | {"lane": numbers, "text": text.facts["text"] | now}
        try:
            text.file.sync()  # the text is on the disk before a state says so
            text.width = write_checkpoint(state_of(text.path), Checkpoint(facts, tensors), text.width)
            text.begun = True
        except (OSError, ScopeError) as error:
            why = error.strerror if isinstance(error, OSError) else str(error)
            if not self._warned:
                self._warn(f"warning: cannot write {state_of(text.path)}: {why}; the text continues")
            self._warned = True


class Outdated:
    """A state from before, of another text in the same file: gone when there is new text, because
    scope resume would write that text over this one.

    states: they may have put this text's own in its place by then; None: none are kept
    """

    def __init__(self, output: Path, prompt: int, states: States | None) -> None:
        self._state, self._prompt, self._states, self._looked = state_of(output), prompt, states, False

    def receive(self, event: Event) -> None:
        if not self._looked and isinstance(event, Token | Finished):
            self._looked = True
            if self._states is None or not self._states.has(self._prompt):
                remove_checkpoint(self._state)

    def close(self) -> None:
        """Without new text the old one is still there, and so is its state."""
