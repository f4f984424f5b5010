"""Three reasons to stay at once: a wide value, R-KV's score, and luck."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.scorers.rkv import Rkv
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("mix")
@dataclass(frozen=True)
class Mix(Scorer):
    """Shares for the largest value ranges and for `rkv`, the rest `random` (our own hypothesis: VaSE,
    arXiv 2606.03928, R-KV, 2505.24133, and Random Attention, 2609.03430, together)."""

    values: Annotated[float, Field(ge=0, le=0.5)] = 0.125  # share of what is kept
    rkv: Annotated[float, Field(ge=0, le=0.5)] = 0.375  # share of what is kept

    needs: ClassVar[str] = "attention, keys, values"
    cost: ClassVar[str] = "w S D + S^2 D"

    @property
    def ring(self) -> int:
        return Rkv().ring

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        # The wide values first, then R-KV's best among the others: together `values` + `rkv` of what is kept.
        ranked = view.reserve(Rkv().score(view), view.value_range(), self.values)
        return view.reserve(view.uniform(), ranked, self.values + self.rkv)
