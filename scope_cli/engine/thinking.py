"""Events of a run in, the same with what the model thinks before it answers marked and counted out.

A model that thinks does so between two tokens of its own, such as <think> and </think>; its chat template may
have written the first one already.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from scope_cli.events import Event, Failed, Finished, Token

TAGS = (
    ("<think>", "</think>"),  # Qwen, DeepSeek, SmolLM3, GLM
    ("[THINK]", "[/THINK]"),  # Magistral
    ("<|START_THINKING|>", "<|END_THINKING|>"),  # Command A
    ("<seed:think>", "</seed:think>"),  # Seed-OSS
)


@dataclass(frozen=True)
class Tags:
    """The ids of the two tokens."""

    begins: int
    ends: int

    @classmethod
    def of(cls, vocabulary: Mapping[str, int]) -> "Tags | None":
        """None where the model has no such tokens. vocabulary: of the added tokens, ids by name"""
        for begins, ends in TAGS:
            if begins in vocabulary and ends in vocabulary:
                return cls(vocabulary[begins], vocabulary[ends])
        return None

    def open_after(self, ids: Sequence[int]) -> bool:
        """Does what follows these tokens begin inside a thought?"""
        last = next((one for one in reversed(ids) if one in (self.begins, self.ends)), None)
        return last == self.begins


class Thinking:
    """Marks tokens of thoughts, the tags among them, and counts them for the end of each output."""

    def __init__(self, tags: Tags | None, prompts: Sequence[Sequence[int]]) -> None:
        """prompts: token ids, by number"""
        self._tags = tags
        self._inside = {number: bool(tags and tags.open_after(ids)) for number, ids in enumerate(prompts)}
        self._tokens: dict[int, int] = defaultdict(int)

    def go_on_after(self, prompt: int, ids: Sequence[int]) -> None:
        """Tokens of an output that another run has written."""
        for token_id in ids:
            self._take(prompt, token_id)

    def _take(self, prompt: int, token_id: int) -> bool:
        """Is it part of a thought?"""
        assert self._tags is not None
        thought = self._inside.get(prompt, False) or token_id == self._tags.begins
        self._inside[prompt] = thought and token_id != self._tags.ends
        self._tokens[prompt] += thought
        return thought

    def mark(self, event: Event) -> Event:
        if self._tags is None:
            return event
        if isinstance(event, Token):
            return replace(event, thinking=self._take(event.prompt, event.token_id))
        if isinstance(event, Finished):
            inside = self._inside.get(event.prompt, False)
            return replace(event, thinking=inside, thinking_tokens=self._tokens[event.prompt])
        if isinstance(event, Failed):
            return replace(event, thinking=self._inside.get(event.prompt, False))
        return event
