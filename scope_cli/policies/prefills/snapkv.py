"""What the end of the prompt looks at, with its neighbours."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from scope_cli.policies.prefills.base import Prefill, PromptView, prefill

if TYPE_CHECKING:
    from torch import Tensor


def odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise PydanticCustomError("odd", "an even pool has no token in its middle")
    return kernel


@prefill("snapkv")
@dataclass(frozen=True)
class SnapKV(Prefill):
    """Attention of the last `window` queries, pooled along the prompt (SnapKV, arXiv 2404.14469)."""

    needs: ClassVar[str] = "attention of the window"
    cost: ClassVar[str] = "W N D"

    kernel: Annotated[int, Field(ge=1), AfterValidator(odd)] = 7
    pooling: Literal["max", "avg"] = "max"

    def ring(self, window: int) -> int:
        return window

    def score(self, view: PromptView) -> Tensor:
        import torch.nn.functional as F

        attention = view.attention(view.window).sum(2).mean(1)  # [kv_heads, prompt]
        before = attention[:, : view.prompt - view.window]  # the window itself stays in any case
        pool = F.max_pool1d if self.pooling == "max" else F.avg_pool1d
        pooled = pool(before, self.kernel, 1, self.kernel // 2)
        return F.pad(pooled, (0, view.window))
