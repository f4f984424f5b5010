"""The attention that queries to come are expected to pay, from the mean and covariance of those that came."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.geometry import LayerGeometry
from scope_cli.policies.prefills.base import Prefill, PromptView, precise, prefill
from scope_cli.policies.rope import turn, unrotate

if TYPE_CHECKING:
    from torch import Tensor


@prefill("expected")
@dataclass(frozen=True)
class Expected(Prefill):
    """Expected Attention (arXiv 2510.00636): from Gaussian queries at the next positions, times |value|."""

    needs: ClassVar[str] = "queries, keys, values, RoPE"
    cost: ClassVar[str] = "N D^2"

    future: Annotated[int, Field(ge=1)] = 512  # positions over which the rotation is averaged
    sinks: Annotated[int, Field(ge=0)] = 4  # first tokens: kept, and no part of the statistics
    epsilon: Annotated[float, Field(ge=0)] = 0.0  # added before the norm is multiplied in

    def memos(self, layer: LayerGeometry, prompt: int) -> dict[str, tuple[int, ...]]:
        return {
            "sum": (layer.heads, layer.head_dim),
            "products": (layer.heads, layer.head_dim, layer.head_dim),
        }

    def observing(self, layer: LayerGeometry, tokens: int, prompt: int) -> int:
        """The chunk's queries: precise, turned back, and in two halves on the way."""
        return 4 * layer.heads * layer.head_dim * tokens

    def observe(self, view: PromptView, queries: Tensor, start: int) -> None:
        """Add up the queries as they were before their rotation, and their products."""
        import torch

        skipped = min(max(0, self.sinks - start), queries.shape[1])
        positions = torch.arange(start + skipped, start + queries.shape[1], device=queries.device)
        plain = unrotate(precise(queries[:, skipped:]), positions, view.inv_freq)
        view.memo["sum"] += plain.sum(1)
        view.memo["products"] += plain.transpose(1, 2) @ plain

    def score(self, view: PromptView) -> Tensor:
        import torch

        sinks = min(self.sinks, view.prompt - 1)
        counted = max(1, view.prompt - self.sinks)
        mean = view.memo["sum"] / counted  # [heads, head_dim]
        covariance = view.memo["products"] / counted - mean.unsqueeze(2) * mean.unsqueeze(1)
        if view.inv_freq is not None:
            ahead = torch.arange(view.prompt, view.prompt + self.future, device=mean.device)
            angles = ahead.to(mean.dtype)[:, None] * view.inv_freq.to(mean.dtype)
            cos, sin = angles.cos().mean(0), angles.sin().mean(0)
            mean = turn(mean, cos, sin)
            covariance = turn(turn(covariance, cos, sin).transpose(1, 2), cos, sin)
        keys, values = precise(view.keys[:, sinks:]), precise(view.values[:, sinks:])
        mean = mean.unflatten(0, (view.kv_heads, -1))  # [kv_heads, group, head_dim]
        covariance = covariance.unflatten(0, (view.kv_heads, -1))
        logits = torch.einsum("hgd,hnd->hgn", mean, keys) * view.scale
        spread = torch.einsum("hgde,hne->hgnd", covariance, keys)
        logits += torch.einsum("hgnd,hnd->hgn", spread, keys) * (view.scale**2 / 2)
        scores = (logits.softmax(-1).mean(1) + self.epsilon) * values.norm(dim=-1)
        return torch.cat([scores.max().expand(view.kv_heads, sinks), scores], 1)
