"""The tokens that received most attention, from every query that could see them."""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from scope_cli.attention import received
from scope_cli.geometry import LayerGeometry
from scope_cli.prefills.base import Prefill, PromptView, prefill


@prefill("h2o")
@dataclass(frozen=True)
class H2O(Prefill):
    """Attention received, summed over all causal queries of the prompt (H2O, arXiv 2306.14048, section 4)."""

    needs: ClassVar[str] = "attention of all queries"
    cost: ClassVar[str] = "N^2 D time, N memory"

    def memos(self, layer: LayerGeometry, prompt: int) -> dict[str, tuple[int, ...]]:
        return {"received": (layer.kv_heads, prompt)}

    def observe(self, view: PromptView, queries: Tensor, start: int) -> None:
        view.memo["received"][:, : view.prompt] += received(queries, view.keys, start, view.scale)

    def score(self, view: PromptView) -> Tensor:
        return view.memo["received"]
