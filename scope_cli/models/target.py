"""A model on a device, in a dtype, as planning sees it; nothing of it need be loaded. No torch."""

from __future__ import annotations

from dataclasses import dataclass

from scope_cli.models.formats import DTYPE_BYTES
from scope_cli.models.shapes import ModelShape


@dataclass(frozen=True)
class Target:
    shape: ModelShape
    device: str  # cpu, cuda, mps
    dtype: str
    load_in: str | None = None  # int8, int4, 8bit, 4bit
    stored_bytes: int | None = None  # of the weights, where more is known of them than their shapes
    loading_bytes: int = 0  # while the weights are read, where that is more than they take afterwards

    @property
    def weight_bytes(self) -> int:
        if self.stored_bytes is not None:
            return self.stored_bytes
        return self.shape.weight_bytes(self.dtype, self.load_in)

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]
