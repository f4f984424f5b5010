"""Keys of small norm stay: they are the ones that attract attention; needs no attention itself."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope_cli.scorers.base import Scorer, SlotView, scorer


@scorer("knorm")
@dataclass(frozen=True)
class Knorm(Scorer):
    """Minus the key's Euclidean norm (L2-norm compression, arXiv 2406.11430)."""

    needs: ClassVar[str] = "keys"
    cost: ClassVar[str] = "S D"

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return -view.precise(view.keys).norm(dim=-1)
