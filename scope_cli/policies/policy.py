"""Everything that decides which tokens leave, besides how many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from scope_cli.policies.scorers.base import Scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor

BLOCK_NUMBERS = 2**24  # of a temporary that would grow with slots times model width: 64 MiB in float32


@dataclass(frozen=True)
class Policy:
    """A scorer, and what is done with its scores."""

    scorer: Scorer
    protect_prompt: bool = True
    sinks: int = 0  # first prompt tokens that stay when the prompt is not protected
    share: Literal["kv_head", "layer"] = "kv_head"  # layer: all heads of a layer keep the same tokens
    weigh: Literal["criticalkv"] | None = None
    reserve_values: float = 0.0  # share of the kept candidates that goes to the largest value ranges

    @property
    def together(self) -> bool:
        """Whether a view may show several layers at once: keys and values are not asked for, or by layer."""
        return self.scorer.together and self.weigh is None and not self.reserve_values

    def scores(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots]"""
        scores = self.scorer.score(view)
        if self.weigh == "criticalkv":
            scores = weigh_by_output(view, scores)
        if self.reserve_values:
            scores = view.reserve(scores, view.value_range(), self.reserve_values)
        if self.share == "layer":  # the heads hold the same tokens in the same slots, so this is a plain mean
            scores = scores.mean(1, keepdim=True).expand_as(scores)
        return scores


def weigh_by_output(view: SlotView, scores: Tensor, epsilon: float = 1e-4) -> Tensor:
    """CriticalKV (arXiv 2502.03805): half of what is kept by the raw scores, the rest by scores x |W_o v|_1.

    The norm is averaged over the heads of a group. Scores that can be negative are shifted so that the lowest
    is 0: a product with a norm needs that. [lanes, kv_heads, slots]
    """
    import torch

    floor = scores.masked_fill(~view.is_held, torch.inf).amin(-1, keepdim=True).clamp(max=0)
    return view.reserve((scores - floor + epsilon) * output_norms(view), scores, 0.5)


def output_norms(view: SlotView) -> Tensor:
    """How much each candidate's value can add to the layer's output: |W_o v|_1, mean over the group.

    [lanes, kv_heads, slots], 0 for what is no candidate. Computed for a block of candidates and one head of
    the groups at a time, because [slots, hidden] numbers per head would be more than the cache itself.
    """
    import torch

    values = view.precise(view.candidates(view.values))  # [lanes, kv_heads, candidates, head_dim]
    lanes, kv_heads, _candidates, _head_dim = values.shape
    members = view.output_weight.unflatten(0, (kv_heads, -1)).unbind(1)  # each [kv_heads, head_dim, hidden]
    block = max(1, BLOCK_NUMBERS // (lanes * kv_heads * members[0].shape[-1]))
    total = values.new_zeros(values.shape[:3])
    for weight in map(view.precise, members):
        norms = [(part @ weight).abs_().sum(-1) for part in values.split(block, 2)]
        total += torch.cat(norms, 2)
    return view.from_candidates(total / len(members))
