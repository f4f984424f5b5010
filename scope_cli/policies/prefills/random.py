"""Chance: the method that every other one has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.prefills.base import Prefill, PromptView, prefill
from scope_cli.policies.view import uniform

if TYPE_CHECKING:
    from torch import Tensor


@prefill("random")
@dataclass(frozen=True)
class Random(Prefill):
    """Chosen at random for every KV head, the same for the same seed: the null of every comparison."""

    needs: ClassVar[str] = "-"
    cost: ClassVar[str] = "N"
    draws: ClassVar[bool] = True

    def score(self, view: PromptView) -> Tensor:
        """A hash of seed, layer, KV head and position, as the scorer `random` has it."""
        import torch

        device = view.queries.device
        place = (view.layer << 40) + (torch.arange(view.kv_heads, device=device)[:, None] << 32)
        seed = torch.tensor(view.seed, device=device) * 0x5851F42D4C957F2D  # odd: no two seeds meet
        return uniform(seed + place + torch.arange(view.prompt, device=device))
