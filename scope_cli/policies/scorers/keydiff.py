"""Keys that point elsewhere than the average stay; needs no attention."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("keydiff")
@dataclass(frozen=True)
class Keydiff(Scorer):
    """Minus the cosine of a key and the mean of all normalised keys held (KeyDiff, arXiv 2504.15364)."""

    needs: ClassVar[str] = "keys"
    cost: ClassVar[str] = "S D"

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        from torch.nn.functional import cosine_similarity, normalize

        keys = view.precise(view.keys)
        held = view.is_held.unsqueeze(-1)
        mean = normalize(keys, dim=-1).masked_fill(~held, 0).sum(2, keepdim=True) / held.sum(2, keepdim=True)
        return -cosine_similarity(keys, mean, dim=-1)
