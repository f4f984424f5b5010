"""Chance, drawn anew for every KV head: the null that every other scorer has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("random")
@dataclass(frozen=True)
class Random(Scorer):
    """Uniformly random per KV head, another draw at each eviction (Random Attention, arXiv 2609.03430)."""

    needs: ClassVar[str] = "nothing"
    cost: ClassVar[str] = "S"
    together: ClassVar[bool] = True

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return view.uniform()
