"""What a prefill method promises: how many tokens of a prompt each layer keeps."""

from collections.abc import Callable
from typing import Protocol, runtime_checkable

from scope_cli import plugins


@runtime_checkable
class Prefill(Protocol):
    def kept(self, prompt_tokens: int) -> int:
        """Prompt tokens held by each KV head once the prompt has been read."""


def prefill(name: str) -> Callable[[type], type]:
    """Register a prefill method under the name of its file."""
    return plugins.register("prefills", name)
