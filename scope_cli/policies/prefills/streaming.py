"""The beginning and the end of the prompt stay."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.policies.prefills.base import Prefill, PromptView, prefill

if TYPE_CHECKING:
    from torch import Tensor


@prefill("streaming")
@dataclass(frozen=True)
class Streaming(Prefill):
    """The first tokens and the last `window` (StreamingLLM, arXiv 2309.17453)."""

    needs: ClassVar[str] = "positions"
    cost: ClassVar[str] = "N"

    def score(self, view: PromptView) -> Tensor:
        import torch

        positions = torch.arange(view.prompt, dtype=torch.float32, device=view.queries.device)
        return (-positions).expand(view.kv_heads, -1)
