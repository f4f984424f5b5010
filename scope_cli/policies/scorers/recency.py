"""The newest tokens: StreamingLLM's rule, with the whole prompt in the place of its sinks."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("recency")
@dataclass(frozen=True)
class Recency(Scorer):
    """The newer the better; looks at nothing (StreamingLLM, arXiv 2309.17453, with the prompt as sinks)."""

    needs: ClassVar[str] = "nothing"
    cost: ClassVar[str] = "S"
    together: ClassVar[bool] = True

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept; exact up to 2**24 tokens."""
        return view.positions.float()
