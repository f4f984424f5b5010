"""Slots in 8 bits: round(x / scale), one float16 scale for each token and KV head."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from scope_cli.formats.base import SMALLEST_SCALE, Format, Part

if TYPE_CHECKING:
    from torch import Tensor

LARGEST = 127


@dataclass(frozen=True)
class Int8(Format):
    """-127 to 127 times a scale; keys are turned, values need it not."""

    turns_values: ClassVar[bool] = False

    def parts(self, head_dim: int) -> tuple[Part, ...]:
        return (Part("", (head_dim,), "int8"), Part("scales", (), "float16"))

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        import torch

        x = x.float()
        scales = x.abs().amax(-1).div_(LARGEST).clamp_(min=SMALLEST_SCALE).half()
        numbers = (x / scales.unsqueeze(-1)).round_()  # never 128: a float16 is right to 1 in 2,048
        return numbers.to(torch.int8), scales

    def unpack(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        numbers, scales = parts
        return out.copy_(numbers).mul_(scales.unsqueeze(-1))


FORMAT = Int8()
