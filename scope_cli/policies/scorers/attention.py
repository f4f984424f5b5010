"""SCOPE's own score: how much the current token attended to each held token."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("attention")
@dataclass(frozen=True)
class Attention(Scorer):
    """Attention probability of the current query, averaged over the heads of a group (SCOPE, eq. 4)."""

    needs: ClassVar[str] = "attention"
    cost: ClassVar[str] = "S D"
    together: ClassVar[bool] = True
    takes_attention: ClassVar[bool] = True

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return view.attention(window=1)
