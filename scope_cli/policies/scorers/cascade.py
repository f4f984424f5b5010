"""The further back, the thinner: every token, every second, every fourth, ... by position alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor

NEVER = 2**24  # tokens: more than any text has, and float32 still counts them one by one


@scorer("cascade")
@dataclass(frozen=True)
class Cascade(Scorer):
    """Log-spaced thinning by position, the density of Cascading KV's sub-caches without its comparison of
    running attention averages (arXiv 2406.17808)."""

    levels: Annotated[int, Field(ge=1, le=16)] = 4  # sub-caches

    needs: ClassVar[str] = "nothing"
    cost: ClassVar[str] = "S"
    together: ClassVar[bool] = True

    def score(self, view: SlotView) -> Tensor:
        """Its position; less NEVER where it is not on its level's stride. [lanes, kv_heads, slots]

        With w = kept candidates / levels, level i holds w tokens at stride 2**i, so it spans w * 2**i tokens
        and begins w * (2**i - 1) behind the recent window. A token's age gives its level; it is on the stride
        when 2**i divides its index in the output. So what is off its stride goes first, the older
        first, and then the oldest.
        """
        import torch

        newest = view.positions.masked_fill(~view.is_candidate, -1).amax(-1, keepdim=True)
        age = (newest - view.positions).unsqueeze(-1)
        spans = 2 ** torch.arange(1, self.levels, device=age.device) - 1  # in w, up to levels 1, 2, ...
        level = (age * self.levels >= view.keep.unsqueeze(-1) * spans).sum(-1)
        index = view.positions - (view.now - view.n + 1)  # in the output, from 0
        off_stride = index.remainder(2**level) != 0
        return view.positions - NEVER * off_stride.to(torch.float32)
