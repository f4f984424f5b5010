"""All the attention that a token has received since it was written: H2O, one row of attention per token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("accumulated")
@dataclass(frozen=True)
class Accumulated(Scorer):
    """Attention received from every query since the token was written, group mean (H2O, arXiv 2306.14048)."""

    needs: ClassVar[str] = "attention"
    cost: ClassVar[str] = "S D, at every token"
    together: ClassVar[bool] = True
    takes_attention: ClassVar[bool] = True
    every_step: ClassVar[bool] = True
    counts_prompt: ClassVar[bool] = True

    @property
    def memos(self) -> tuple[str, ...]:
        return ("mass",)

    def observe(self, view: SlotView) -> None:
        mass = view.memo("mass")
        mass.add_(view.attention(window=1).masked_fill(~view.wrote, 0).to(mass.dtype))

    def observe_prompt(self, view: SlotView, received: Tensor) -> None:
        view.memo("mass").add_(received)

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return view.memo("mass")
