"""A share for the largest value ranges, the rest drawn by chance in proportion to attention: VaSE."""

from __future__ import annotations

from dataclasses import dataclass
from math import pi
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scope_cli.policies.scorers.base import Odd, Scorer, scorer
from scope_cli.policies.view import SMALLEST, SlotView, uniform

if TYPE_CHECKING:
    from torch import Tensor


@scorer("vase")
@dataclass(frozen=True)
class Vase(Scorer):
    """A reserve for the largest value ranges; the rest drawn in proportion to attention, or (`cur`) by a
    random sketch of keys and values (VaSE, arXiv 2606.03928)."""

    window: Annotated[int, Field(ge=1)] = 32  # queries; 64 in the paper
    reserve: Annotated[float, Field(ge=0, le=1)] = 0.25  # share of what is kept
    mode: Literal["attention", "cur"] = "attention"
    kernel: Odd = 5  # tokens that attention is averaged over
    rank: Annotated[int, Field(ge=1)] = 20  # columns of the sketch

    needs: ClassVar[str] = "attention, values; cur: keys, values"
    cost: ClassVar[str] = "w S D; cur: rank S D"

    @property
    def ring(self) -> int:
        return self.window if self.mode == "attention" else 1

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        rest = self.lottery(view) if self.mode == "attention" else self.sketch(view)
        return view.reserve(rest, view.value_range(), self.reserve)

    def lottery(self, view: SlotView) -> Tensor:
        """log a + Gumbel noise: the k highest are k draws without replacement, in proportion to a.

        a: attention of the window, averaged over `kernel` neighbours; [lanes, kv_heads, slots]
        """
        import torch

        attention = view.pool(view.attention(self.window), self.kernel, "mean")
        noise = -view.uniform().clamp(min=SMALLEST).log()
        return attention.clamp(min=torch.finfo(torch.float32).tiny).log() - noise.log()

    def sketch(self, view: SlotView) -> Tensor:
        """|k G|^2 |v G|^2, [lanes, kv_heads, slots], with another G at every eviction."""
        keys, values = view.precise(view.keys), view.precise(view.values)
        projection = self.projection(view).to(keys.dtype)
        return (keys @ projection).square().sum(-1) * (values @ projection).square().sum(-1)

    def projection(self, view: SlotView) -> Tensor:
        """G ~ N(0, 1/rank), [lanes, kv_heads, head_dim, rank]: Box and Muller's formula on hashed numbers."""
        import torch

        head_dim = view.keys.shape[-1]
        at = torch.arange(1, 1 + head_dim * self.rank, device=view.keys.device)
        radius = (-2 * uniform(view.head_seeds(salt=1) + at).clamp(min=SMALLEST).log()).sqrt()
        angle = 2 * pi * uniform(view.head_seeds(salt=2) + at)
        return (radius * angle.cos() * self.rank**-0.5).unflatten(-1, (head_dim, self.rank))
