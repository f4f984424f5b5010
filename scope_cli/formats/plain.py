"""Slots in the cache's own dtype."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.formats.base import Format, Part

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Plain(Format):
    """Every number as the model computed it."""

    packs: ClassVar[bool] = False
    turns_keys: ClassVar[bool] = False
    turns_values: ClassVar[bool] = False

    def parts(self, head_dim: int) -> tuple[Part, ...]:
        return (Part("", (head_dim,), None),)

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        return (x,)

    def unpack(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        return out.copy_(parts[0])


FORMAT = Plain()
