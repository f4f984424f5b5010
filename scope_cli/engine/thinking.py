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

    def mark(self, event: Event) -> Event:
        if self._tags is None:
            return event
        if isinstance(event, Token):
            begins, ends = event.token_id == self._tags.begins, event.token_id == self._tags.ends
            thought = self._inside.get(event.prompt, False) or begins
            self._inside[event.prompt] = thought and not ends
            self._tokens[event.prompt] += thought
            return replace(event, thinking=thought)
        if isinstance(event, Finished):
            inside = self._inside.get(event.prompt, False)
            return replace(event, thinking=inside, thinking_tokens=self._tokens[event.prompt])
        if isinstance(event, Failed):
            return replace(event, thinking=self._inside.get(event.prompt, False))
        return event
