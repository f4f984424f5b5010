"""Keys that point elsewhere than the average stay; needs no attention."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

from scope_cli.scorers.base import Scorer, SlotView, scorer


@scorer("keydiff")
@dataclass(frozen=True)
class Keydiff(Scorer):
    """Minus the cosine of a key and the mean of all normalised keys held (KeyDiff, arXiv 2504.15364)."""

    needs: ClassVar[str] = "keys"
    cost: ClassVar[str] = "S D"

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        keys = view.precise(view.keys)
        held = view.is_held.unsqueeze(-1)
        mean = normalize(keys, dim=-1).masked_fill(~held, 0).sum(2, keepdim=True) / held.sum(2, keepdim=True)
        return -cosine_similarity(keys, mean, dim=-1)
