"""Keys of small norm stay: they are the ones that attract attention; needs no attention itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("knorm")
@dataclass(frozen=True)
class Knorm(Scorer):
    """Minus the key's Euclidean norm (L2-norm compression, arXiv 2406.11430)."""

    needs: ClassVar[str] = "keys"
    cost: ClassVar[str] = "S D"

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return -view.precise(view.keys).norm(dim=-1)
