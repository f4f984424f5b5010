"""Tokens that stand out against the stretch of text after them stay; needs keys and values alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("lagkv")
@dataclass(frozen=True)
class Lagkv(Scorer):
    """Spread of a key's and value's channels, measured by the range of the next `lag` tokens (LagKV,
    arXiv 2504.04704)."""

    lag: Annotated[int, Field(ge=2)] = 32  # tokens; 128 in the paper, for caches larger than an output's

    needs: ClassVar[str] = "keys, values, order"
    cost: ClassVar[str] = "S D"

    def score(self, view: SlotView) -> Tensor:
        """A candidate's rank in its partition of `lag` candidates, 1 the best, 1 / lag the worst.

        So the top fraction of every partition stays. The last whole partition and what follows it have no
        next one to be measured by: they score above 1, the newer the higher. [lanes, kv_heads, slots]
        """
        import torch

        is_candidate = view.candidates(view.is_candidate)  # [lanes, kv_heads, candidates]
        spread = (self.spread(view.candidates(view.keys)) + self.spread(view.candidates(view.values))) / 2
        rank = spread.argsort(stable=True).argsort()  # [lanes, kv_heads, partitions, lag]
        ranked = (rank.flatten(2)[:, :, : is_candidate.shape[2]] + 1) / self.lag
        index = torch.arange(is_candidate.shape[2], device=spread.device)
        whole = is_candidate.sum(-1, keepdim=True) // self.lag
        is_measured = index < (whole - 1) * self.lag
        return view.from_candidates(torch.where(is_measured, ranked, index + 2))

    def spread(self, x: Tensor) -> Tensor:
        """Softmax, within each partition, of the channels' standard deviation.

        x: [lanes, kv_heads, candidates, head_dim] in the order of the text
        returns [lanes, kv_heads, partitions, lag]; the last partition's are not to be used
        """
        import torch
        from torch.nn.functional import pad

        x = x.to(torch.promote_types(x.dtype, torch.float32))
        x = pad(x, (0, 0, 0, -x.shape[2] % self.lag)).unflatten(2, (-1, self.lag))
        following = x.roll(-1, 2)
        low, high = following.amin(3, keepdim=True), following.amax(3, keepdim=True)
        scaled = (x - low) / (high - low).clamp(min=1e-6)
        return scaled.std(-1).softmax(-1)
