"""Slots in 4 bits: 0 to 15 times a scale, plus a minimum, both float16, one of each for 32 numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from scope_cli.formats.base import SMALLEST_SCALE, Format, Part

if TYPE_CHECKING:
    from torch import Tensor

GROUP = 32  # the kernels read no other
LARGEST = 15


@dataclass(frozen=True)
class Int4(Format):
    """Byte j holds the numbers j, in its low half, and j + head_dim / 2; keys and values are turned."""

    def problem(self, head_dim: int) -> str | None:
        if head_dim % GROUP:
            return f"4 bits come in groups of {GROUP}; this model's heads are {head_dim} wide"
        return None

    def parts(self, head_dim: int) -> tuple[Part, ...]:
        groups = Part("groups", (2, head_dim // GROUP), "float16")  # scales, minima
        return (Part("", (head_dim // 2,), "uint8"), groups)

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        import torch

        grouped = x.float().unflatten(-1, (-1, GROUP))
        least = grouped.amin(-1).half()
        above = grouped - least.unsqueeze(-1)
        scales = (above.amax(-1) / LARGEST).clamp_(min=SMALLEST_SCALE).half()
        numbers = (above / scales.unsqueeze(-1)).round_().clamp_(0, LARGEST)
        low, high = numbers.to(torch.uint8).flatten(-2).chunk(2, -1)
        return low | (high << 4), torch.stack([scales, least], -2)

    def unpack(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        numbers, groups = parts
        low, high = out.chunk(2, -1)
        low.copy_(numbers & 15)
        high.copy_(numbers >> 4)
        scales, least = groups.unsqueeze(-1).unbind(-3)  # [..., groups, 1]
        out.unflatten(-1, (-1, GROUP)).mul_(scales).add_(least)
        return out


FORMAT = Int4()
