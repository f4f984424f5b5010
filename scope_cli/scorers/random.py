"""Chance, drawn anew for every KV head: the null that every other scorer has to beat."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope_cli.scorers.base import SlotView, scorer


@scorer("random")
@dataclass(frozen=True)
class Random:
    """Uniformly random per KV head, another draw at each eviction (Random Attention, arXiv 2609.03430)."""

    window: ClassVar[int] = 1

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return view.uniform()
