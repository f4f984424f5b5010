"""The keys that differ most from the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.prefills.base import Prefill, PromptView, precise, prefill

if TYPE_CHECKING:
    from torch import Tensor


@prefill("keydiff")
@dataclass(frozen=True)
class KeyDiff(Prefill):
    """Minus the cosine to the mean direction of all keys, no attention (KeyDiff, arXiv 2504.15364)."""

    needs: ClassVar[str] = "keys"
    cost: ClassVar[str] = "N D"

    def score(self, view: PromptView) -> Tensor:
        import torch.nn.functional as F

        directions = F.normalize(precise(view.keys), dim=-1)
        return -F.cosine_similarity(directions, directions.mean(1, keepdim=True), dim=-1)
