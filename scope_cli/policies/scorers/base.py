"""What a scorer sees of a layer's slots, and what it promises.

A scorer is a frozen dataclass: its fields are its options in YAML, its docstring is its line in
`scope scorers`. It ranks the slots of every KV head by itself, leaves choosing, freeing and counting to the
cache, and holds no state: what it remembers about a slot lies beside the slot, `view.memo("mass")`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from scope_cli.policies import plugins
from scope_cli.policies.view import SlotView

if TYPE_CHECKING:
    from torch import Tensor

    from scope_cli.geometry import Geometry


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise PydanticCustomError("odd", "should be odd, so that a token is in the middle of its neighbours")
    return kernel


Odd = Annotated[int, Field(ge=1), AfterValidator(_odd)]


class Scorer:
    """The base of every scorer; a subclass writes `score` and says what it needs."""

    needs: ClassVar[str] = "-"  # attention, keys, values, ...: what it reads, for `scope scorers`
    cost: ClassVar[str] = "-"  # of one eviction, per KV head with S slots of width D
    every_step: ClassVar[bool] = False  # `observe` is called at every token, not only before evictions
    together: ClassVar[bool] = False  # a view may show it several layers at once, as if they were lanes
    takes_attention: ClassVar[bool] = False  # asks `view.attention(window=1)`, which a step can tell as it is
    counts_prompt: ClassVar[bool] = False  # wants `observe_prompt` where the prompt is not protected

    @property
    def ring(self) -> int:
        """How many of the newest queries it looks at; 1 is the current one."""
        return 1

    @property
    def memos(self) -> tuple[str, ...]:
        """Names of the float32 values that lie beside each slot, 0 for a new token."""
        return ()

    def check(self, geometry: Geometry) -> None:
        """Raises UsageError, before anything is read, where it cannot rank this model's tokens."""

    def score(self, view: SlotView) -> Tensor:
        """[lanes, kv_heads, slots], finite where a token is held, at least float32; higher is kept. Pure."""
        raise NotImplementedError

    def observe(self, view: SlotView) -> None:
        """Write into the memos; called before each eviction, or at every token (`every_step`).

        Lanes go their own ways: write only where `view.is_evicting`, or `view.wrote` with `every_step`.
        """

    def observe_prompt(self, view: SlotView, received: Tensor) -> None:
        """Start the memos of a lane's unprotected prompt, once it has been read (`counts_prompt`).

        received: [lanes, kv_heads, slots], attention that each prompt token got from itself and all later
        ones, a mean over the group; 0 in the other lanes
        """


def scorer(name: str) -> Callable[[type], type]:
    """Register a scorer under the name of its file."""
    return plugins.register("scorers", name)
