"""Importance less redundancy: R-KV drops what is attended little, and what says the same as newer tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Odd, Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor

ROWS = 256  # of the similarity matrix at a time


@scorer("rkv")
@dataclass(frozen=True)
class Rkv(Scorer):
    """mix x attention of the last queries - (1 - mix) x likeness to other keys (R-KV, arXiv 2505.24133)."""

    mix: Annotated[float, Field(ge=0, le=1)] = 0.5  # importance against redundancy; 0.1 in the paper
    window: Annotated[int, Field(ge=1)] = 8  # queries
    kernel: Odd = 7  # tokens that importance is max-pooled over
    threshold: Annotated[float, Field(ge=-1, le=1)] = 0.5  # cosine above which two keys say the same

    needs: ClassVar[str] = "attention, keys"
    cost: ClassVar[str] = "w S D + S^2 D"

    @property
    def ring(self) -> int:
        return self.window

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return self.mix * self.importance(view) - (1 - self.mix) * self.redundancy(view)

    def importance(self, view: SlotView) -> Tensor:
        """Attention among the candidates: like the redundancy it sums to 1 before it is pooled.

        [lanes, kv_heads, slots]
        """
        attention = view.attention(self.window, group="logit_max", among=view.is_candidate)
        return view.pool(attention, self.kernel, "max")

    def redundancy(self, view: SlotView) -> Tensor:
        """Softmax over the candidates of their mean cosine with the others; [lanes, kv_heads, slots].

        In each row the newest of the keys above the threshold counts 0, so that of a set of duplicates the
        newest is spared; a pair is spared altogether (the paper's rule, to the letter).
        """
        import torch
        from torch.nn.functional import normalize

        is_candidate = view.candidates(view.is_candidate)
        keys = normalize(view.precise(view.candidates(view.keys)), dim=-1)
        keys = keys * is_candidate.unsqueeze(-1)  # [lanes, kv_heads, candidates, head_dim]
        place = torch.arange(1.0, 1 + keys.shape[2], device=keys.device)  # in the text, from 1
        total = keys.new_zeros(keys.shape[:3])
        for start in range(0, len(place), ROWS):
            cosines = keys[:, :, start : start + ROWS] @ keys.transpose(2, 3)
            cosines.diagonal(start, 2, 3).zero_()
            alike = (cosines > self.threshold) & is_candidate.unsqueeze(2)
            newest = (alike * place).amax(-1, keepdim=True).long() - 1  # -1: none
            at = newest.clamp(min=0)
            cosines.scatter_(3, at, cosines.gather(3, at).masked_fill(newest >= 0, 0))
            total += cosines.sum(2)
        mean = total / is_candidate.sum(-1, keepdim=True).clamp(min=1)
        weights = mean.masked_fill(~is_candidate, -torch.inf).softmax(-1)
        return view.from_candidates(weights.masked_fill(~is_candidate, 0))
