"""Prompts that begin alike: the first is read, the next copies the beginning from its slots, bit for bit.

How many tokens a chunk has decides how its sums are rounded. So what two prompts have in common counts as far
as it is whole chunks of both (`chunk_ends`). It takes no memory: it lies in the row of a prompt that runs, or
has run last.
"""

from dataclasses import dataclass

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.state import keeps_prompt
from scope_cli.engine.chunks import LEAST, chunk_ends


@dataclass(frozen=True)
class Beginning:
    """The first tokens of a prompt, and the row of the cache in whose slots they lie."""

    row: int
    tokens: int


class Beginnings:
    """Which prompts lie in the rows of one cache."""

    def __init__(self, cache: ScopeCache, chunk: int) -> None:
        """chunk: `prefill.chunk`"""
        self._cache, self._chunk = cache, chunk
        self._prompts: dict[int, list[int]] = {}
        self._ended: set[int] = set()

    def of(self, prompt_ids: list[int]) -> Beginning | None:
        """The longest one that is there."""
        found = [
            Beginning(row, tokens)
            for row, there in self._prompts.items()
            if (tokens := self._alike(prompt_ids, there)) >= LEAST
            and (self._cache.count(row).active or row in self._ended)  # one that failed was wiped
            and keeps_prompt(self._cache, row, tokens)
        ]
        return max(found, key=lambda one: one.tokens, default=None)

    def add(self, row: int, prompt_ids: list[int]) -> None:
        """A row has read this prompt, or copied it."""
        self._prompts[row] = prompt_ids

    def end(self, row: int) -> None:
        """Its output has ended in good order."""
        self._ended.add(row)

    def drop(self, row: int) -> None:
        """It gets another prompt."""
        self._prompts.pop(row, None)
        self._ended.discard(row)

    def _alike(self, ids: list[int], there: list[int]) -> int:
        """Tokens in whole chunks. As many are left to read as the queries that are remembered: those of a
        row's own prompt are not there any more."""
        most, alike = min(len(there), len(ids) - self._cache.shape.ring), 0
        for end in chunk_ends(len(ids), self._chunk, self._cache.device.type):
            if end > most or ids[alike:end] != there[alike:end]:
                break
            alike = end
        return alike
