"""What the end of the prompt looks at, the newest queries counting most, less of it with every layer."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from math import cos, pi
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from scope_cli.policies.prefills.base import Prefill, PromptView, prefill, share_out

if TYPE_CHECKING:
    from torch import Tensor


@prefill("pyramidinfer")
@dataclass(frozen=True)
class PyramidInfer(Prefill):
    """Window attention, newest queries first; budgets decay with depth (PyramidInfer, arXiv 2405.12532)."""

    needs: ClassVar[str] = "attention of the window"
    cost: ClassVar[str] = "W N D"
    divides_layers: ClassVar[bool] = True

    distance_weight: Annotated[float, Field(ge=1)] = (
        1.2  # of the newest query; the oldest of the window has 1
    )
    decay: Annotated[float, Field(gt=0, le=1)] = 0.9  # of what one layer keeps, the next keeps at least this
    shape: Literal["cosine", "geometric"] = "cosine"  # geometric: every layer keeps `decay` of the one before

    def ring(self, window: int) -> int:
        return window

    def budgets(self, budget: int, prompt: int, window: int, layers: int) -> list[int]:
        """Layer l keeps r_l of what layer l - 1 keeps; r_l falls from 1 to `decay` along half a cosine."""
        weights = [Fraction(1)]
        for layer in range(1, layers):
            bend = (cos(pi * layer / layers) + 1) / 2 if self.shape == "cosine" else 0.0
            ratio = self.decay + (1 - self.decay) * bend
            weights.append(weights[-1] * Fraction(round(ratio * 10**6), 10**6))
        return share_out(weights, budget, prompt, window)

    def score(self, view: PromptView) -> Tensor:
        import torch

        attention = view.attention(view.window).mean(1)  # [kv_heads, window, prompt]
        weights = torch.linspace(
            1, self.distance_weight, view.window, dtype=attention.dtype, device=attention.device
        )
        return (attention * weights.view(1, -1, 1)).sum(1) / weights.sum()
