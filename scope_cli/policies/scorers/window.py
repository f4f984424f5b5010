"""Attention over the newest queries, with or without a memory: SnapKV at decode, G-KV, TOVA, DefensiveKV.

SnapKV (arXiv 2404.14469): `window: 32, kernel: 5`. G-KV: `memory: 0.8, group: logit_max`. TOVA
(arXiv 2401.06104): `window: 1` and `decode.share: layer`. DefensiveKV (arXiv 2510.13334): `queries: max`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.scorers.base import Odd, Scorer, scorer
from scope_cli.policies.view import Group, Over, SlotView

if TYPE_CHECKING:
    from torch import Tensor


@scorer("window")
@dataclass(frozen=True)
class Window(Scorer):
    """Attention of the last `window` queries, pooled along the text, remembered if `memory` > 0: SnapKV at
    decode, G-KV (arXiv 2512.00504)."""

    window: Annotated[int, Field(ge=1)] = 16  # queries
    queries: Over = "mean"  # over the window
    group: Group = "mean"  # over the heads of a group
    memory: Annotated[float, Field(ge=0, lt=1)] = 0.0  # what is left of an old score after one eviction
    kernel: Odd = 1  # tokens
    pooling: Over = "mean"  # over the kernel

    needs: ClassVar[str] = "attention"
    cost: ClassVar[str] = "w S D"
    together: ClassVar[bool] = True

    @property
    def ring(self) -> int:
        return self.window

    @property
    def memos(self) -> tuple[str, ...]:
        return ("F",) if self.memory else ()

    def observe(self, view: SlotView) -> None:
        """F = max(memory * F, f / max f), where f is the score of this eviction alone.

        It decays once per eviction, so `decode.interval` decides how many tokens that is.
        """
        import torch

        if self.memory:
            now, remembered = self._now(view), view.memo("F")
            scaled = now / now.amax(-1, keepdim=True).clamp(min=torch.finfo(now.dtype).tiny)
            merged = torch.maximum(self.memory * remembered, scaled.to(remembered.dtype))
            remembered.copy_(torch.where(view.is_evicting, merged, remembered))

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], higher is kept."""
        return view.memo("F") if self.memory else self._now(view)

    def _now(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots]"""
        return view.pool(view.attention(self.window, self.queries, self.group), self.kernel, self.pooling)
