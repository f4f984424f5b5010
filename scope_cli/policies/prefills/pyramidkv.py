"""SnapKV's choice, with more of the budget in the lower layers."""

from dataclasses import dataclass
from fractions import Fraction
from typing import Annotated, ClassVar

from pydantic import Field

from scope_cli.policies.prefills.base import prefill, share_out
from scope_cli.policies.prefills.snapkv import SnapKV


@prefill("pyramidkv")
@dataclass(frozen=True)
class PyramidKV(SnapKV):
    """snapkv, budgets falling linearly with depth, their sum unchanged (PyramidKV, arXiv 2406.02069)."""

    divides_layers: ClassVar[bool] = True

    beta: Annotated[int, Field(ge=1)] = 20  # the last layer gets 1/beta of the average beyond the window

    def budgets(self, budget: int, prompt: int, window: int, layers: int) -> list[int]:
        """From (2 - 1/beta) to 1/beta times the average beyond the window, in equal steps (section 3.2)."""
        last = Fraction(1, self.beta)
        first = 2 - last
        weights = [first - (first - last) * Fraction(i, max(1, layers - 1)) for i in range(layers)]
        return share_out(weights, budget, prompt, window)
