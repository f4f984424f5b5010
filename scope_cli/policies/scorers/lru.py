"""When a token was last attended to: the least recently used leave, as RaaS does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("lru")
@dataclass(frozen=True)
class Lru(Scorer):
    """The last step at which a token was in the top `share` of the current query's attention (RaaS,
    arXiv 2502.11147)."""

    share: Annotated[float, Field(gt=0, le=1)] = 0.5  # of the held tokens, rounded up

    needs: ClassVar[str] = "attention"
    cost: ClassVar[str] = "S D, at every token"
    together: ClassVar[bool] = True
    takes_attention: ClassVar[bool] = True
    every_step: ClassVar[bool] = True

    @property
    def memos(self) -> tuple[str, ...]:
        return ("stamp",)

    def observe(self, view: SlotView) -> None:
        """Stamp n on what was used now; writing a token counts as using it."""
        import torch

        stamp = view.memo("stamp")
        top = (view.is_held.sum(-1, keepdim=True) * self.share).ceil()
        used = view.rank(view.attention(window=1), among=view.is_held) < top
        used = (used & view.is_held) | (view.positions == view.now)
        stamp.copy_(torch.where(used & view.wrote, view.n.to(stamp.dtype), stamp))

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept; exact up to 2**24 tokens."""
        return view.memo("stamp")
