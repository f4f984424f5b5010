"""Every layer keeps the same share of its attention, in as many tokens as that takes.

PrefixKV: arXiv 2412.03409; ZipVL: arXiv 2410.08584.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.prefills.base import PromptView
from scope_cli.policies.wrappers.base import Wrapper, wrapper

if TYPE_CHECKING:
    import torch


@wrapper("mass")
@dataclass(frozen=True)
class Mass(Wrapper):
    """Layers keep an equal share of attention: what the budget allows (PrefixKV), or tau (ZipVL)."""

    needs: ClassVar[str] = "attention of the window"
    cost: ClassVar[str] = "W N D"
    late: ClassVar[bool] = True
    divides_layers: ClassVar[bool] = True

    tau: Annotated[float, Field(gt=0, le=1)] | None = None  # the share to keep, in place of a budget

    @property
    def finds_budget(self) -> bool:
        return self.tau is not None

    def ring(self, window: int) -> int:
        return window

    def budgets(self, views: Sequence[PromptView], budgets: list[int]) -> list[int]:
        """A layer needs its k-th highest token where the k - 1 before it hold less than the share.

        So the tokens of all layers, sorted by the mass before them, are needed in that order: as many as the
        budget has are the answer, and the last one's mass is PrefixKV's threshold, found without bisection.
        """
        import torch

        prompt, window = views[0].prompt, views[0].window
        before = torch.stack([mass_before(view) for view in views])  # [layers, prompt]
        if self.tau is not None:
            needed = (before < self.tau).sum(-1)
        else:
            before[:, :window] = -1  # the window is kept whatever its mass
            order = before.flatten().sort(stable=True).indices[: sum(budgets)]
            needed = torch.bincount(order // prompt, minlength=len(views))
        return [max(window, int(tokens)) for tokens in needed.tolist()]


def mass_before(view: PromptView) -> torch.Tensor:
    """Share of the window's attention that goes to higher tokens than the k-th highest: [prompt], by k."""
    mass = view.attention(view.window).mean((0, 1)).sum(0)  # mean over all heads, summed over the queries
    shares = mass.sort(descending=True).values / mass.sum()
    return shares.cumsum(0) - shares
