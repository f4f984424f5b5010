"""Key channels that the last queries hardly use are pruned."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.prefills.base import PromptView, precise
from scope_cli.policies.wrappers.base import Wrapper, wrapper

if TYPE_CHECKING:
    from torch import Tensor


@wrapper("think")
@dataclass(frozen=True)
class ThinK(Wrapper):
    """The weakest key channels become zero, which frees no memory yet (ThinK, arXiv 2407.21018)."""

    needs: ClassVar[str] = "queries, keys"
    cost: ClassVar[str] = "N D"
    rewrites: ClassVar[bool] = True
    frees_nothing: ClassVar[str] = "pruned key channels are stored as zeros, which frees no memory"

    share: Annotated[float, Field(ge=0, lt=1)] = 0.4  # of a head's channels
    queries: Annotated[int, Field(ge=1)] = 32  # the prompt's last, which weigh the channels

    def ring(self, window: int) -> int:
        return self.queries

    def rewrite(self, view: PromptView, kept: Tensor) -> None:
        """A channel weighs its queries' mean square times its keys' (section 3.2), over the kept tokens."""
        import torch

        end = view.prompt - view.window
        queries = precise(view.queries[:, -self.queries :]).unflatten(0, (view.kv_heads, -1))
        keys = precise(view.keys[:, :end]).masked_fill(~kept[:, :end, None], 0)
        weight = queries.square().mean((1, 2)) * keys.square().sum(1)  # [kv_heads, head_dim]
        weakest = weight.argsort(dim=-1, stable=True)[:, : int(self.share * weight.shape[-1])]
        pruned = torch.zeros_like(weight, dtype=torch.bool).scatter_(1, weakest, True)
        view.keys[:, :end].masked_fill_(pruned.unsqueeze(1), 0)
