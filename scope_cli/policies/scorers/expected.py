"""The attention that queries to come are expected to pay, from the mean and covariance of those that came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.rope import turn, unrotate
from scope_cli.policies.scorers.base import Scorer, scorer
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("expected")
@dataclass(frozen=True)
class Expected(Scorer):
    """Attention expected from Gaussian queries at the next positions, times |v| (arXiv 2510.00636)."""

    needs: ClassVar[str] = "queries, keys, values, RoPE"
    cost: ClassVar[str] = "S D^2"

    window: Annotated[int, Field(ge=2)] = 64  # queries that the mean and the covariance are taken from
    future: Annotated[int, Field(ge=1)] = 512  # positions over which the rotation is averaged

    @property
    def ring(self) -> int:
        return self.window

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        import torch

        queries, positions = view.newest_queries(self.window)  # [lanes, kv_heads, group, window, head_dim]
        seen = (positions >= 0).view(-1, 1, 1, self.window, 1)
        plain = unrotate(queries, positions.view(-1, 1, 1, self.window), view.inv_freq).masked_fill(~seen, 0)
        count = seen.sum(3)
        mean = plain.sum(3) / count  # [lanes, kv_heads, group, head_dim]
        spread = (plain - mean.unsqueeze(3)).masked_fill(~seen, 0)
        covariance = spread.transpose(3, 4) @ spread / count.unsqueeze(-1)
        if view.inv_freq is not None:
            ahead = view.now + 1 + torch.arange(self.future, device=mean.device)  # [lanes, 1, future]
            angles = ahead.to(mean.dtype).unsqueeze(-1) * view.inv_freq.to(mean.dtype)
            cos, sin = angles.cos().mean(2).unsqueeze(2), angles.sin().mean(2).unsqueeze(2)
            mean = turn(mean, cos, sin)
            cos, sin = cos.unsqueeze(3), sin.unsqueeze(3)
            covariance = turn(turn(covariance, cos, sin).transpose(3, 4), cos, sin)
        keys = view.precise(view.keys).unsqueeze(2)  # [lanes, kv_heads, 1, slots, head_dim]
        logits = (keys @ mean.unsqueeze(4)).squeeze(4) * view.scale
        logits = logits + ((keys @ covariance) * keys).sum(-1) * (view.scale**2 / 2)
        logits = logits.masked_fill(~view.is_held.unsqueeze(2), -torch.inf)
        return logits.softmax(-1).mean(2) * view.precise(view.values).norm(dim=-1)
