"""What a wrapper changes about a prefill method: who gets how much of the budget, or what is stored.

A wrapper is a frozen dataclass like a method, named in `prefill.wrap`; several go together, each for its own
question.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies import plugins
from scope_cli.policies.prefills.base import PromptView

if TYPE_CHECKING:
    from torch import Tensor


class Wrapper:
    """The base of every wrapper; a subclass overrides the question that it answers."""

    needs: ClassVar[str] = "-"
    cost: ClassVar[str] = "-"
    late: ClassVar[bool] = False  # how many slots a layer needs is known when the prompt has been read
    divides_layers: ClassVar[bool] = False  # layers keep different numbers of tokens
    divides_heads: ClassVar[bool] = False  # KV heads of a layer keep different numbers of tokens
    rewrites: ClassVar[bool] = False  # changes what is stored, also where every token is kept
    draws: ClassVar[bool] = False  # chance decides: it asks for the view's seed
    frees_nothing: ClassVar[str] = ""  # in words, where what is saved is not freed

    @property
    def finds_budget(self) -> bool:
        """It needs no `prefill.budget`."""
        return False

    def ring(self, window: int) -> int:
        """How many of the prompt's last queries it looks at."""
        return 0

    def most(self, kept: int, prompt: int) -> int:
        """Slots that a head may need in a layer that keeps `kept` tokens on average."""
        return kept

    def budgets(self, views: Sequence[PromptView], budgets: list[int]) -> list[int]:
        """Tokens that each KV head of each layer keeps, on average."""
        return budgets

    def choose(self, scores: Tensor, budget: int, window: int) -> Tensor | None:
        """Which tokens stay, a mask [kv_heads, prompt]; None: each head's highest scored."""
        return None

    def rewrite(self, view: PromptView, kept: Tensor) -> None:
        """Change the keys or values of the kept tokens, a mask [kv_heads, prompt], in place."""


def wrapper(name: str) -> Callable[[type], type]:
    """Register a wrapper under the name of its file."""
    return plugins.register("wrappers", name)
