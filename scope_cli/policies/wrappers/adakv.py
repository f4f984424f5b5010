"""Heads whose tokens score higher keep more of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.prefills.base import choose
from scope_cli.policies.wrappers.base import Wrapper, wrapper

if TYPE_CHECKING:
    from torch import Tensor


@wrapper("adakv")
@dataclass(frozen=True)
class AdaKV(Wrapper):
    """A layer's budget goes to the highest scores of all its heads together (Ada-KV, arXiv 2407.11550)."""

    needs: ClassVar[str] = "the method's scores"
    cost: ClassVar[str] = "N log N; heads that keep fewer are padded"
    late: ClassVar[bool] = True
    divides_heads: ClassVar[bool] = True

    floor: Annotated[float, Field(ge=0, le=1)] = 0.2  # of the average: what every head keeps
    cap: Annotated[float, Field(ge=1)] = 2.0  # of the average: what no head goes beyond

    def most(self, kept: int, prompt: int) -> int:
        return min(prompt, int(self.cap * kept))

    def choose(self, scores: Tensor, budget: int, window: int) -> Tensor:
        """Every head's floor, then the highest scores of the layer, none beyond its head's cap."""
        import torch

        heads, prompt = scores.shape
        floor = choose(scores, max(window, int(self.floor * budget)), window)
        below_cap = choose(scores, self.most(budget, prompt), window)
        ranked = scores.masked_fill(~below_cap, -torch.inf).masked_fill(floor, torch.inf)
        return choose(ranked.view(1, -1), heads * budget, 0).view(heads, prompt)
