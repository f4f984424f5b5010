"""The tokens that received most attention, from every query that could see them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.geometry import LayerGeometry
from scope_cli.policies.prefills.base import Prefill, PromptView, prefill
from scope_cli.policies.received import QUERY_BLOCK, received

if TYPE_CHECKING:
    from torch import Tensor


@prefill("h2o")
@dataclass(frozen=True)
class H2O(Prefill):
    """Attention received, summed over all causal queries of the prompt (H2O, arXiv 2306.14048, section 4)."""

    needs: ClassVar[str] = "attention of all queries"
    cost: ClassVar[str] = "N^2 D time, N memory"

    def memos(self, layer: LayerGeometry, prompt: int) -> dict[str, tuple[int, ...]]:
        return {"received": (layer.kv_heads, prompt)}

    def observing(self, layer: LayerGeometry, tokens: int, prompt: int) -> int:
        """A block of attention rows, twice: before and after the softmax."""
        return 2 * layer.heads * min(QUERY_BLOCK, tokens) * prompt

    def observe(self, view: PromptView, queries: Tensor, start: int) -> None:
        view.memo["received"][:, : view.prompt] += received(queries, view.keys, start, view.scale)

    def score(self, view: PromptView) -> Tensor:
        return view.memo["received"]
