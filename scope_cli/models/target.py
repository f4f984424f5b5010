"""A model on a device, in a dtype, as planning sees it; nothing of it need be loaded. No torch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

from scope_cli.files import cache_folder
from scope_cli.models.decoders import ROWS
from scope_cli.models.formats import BITS, DTYPE_BYTES
from scope_cli.models.shapes import ModelShape
from scope_cli.native.build import expected


@dataclass(frozen=True)
class Target:
    shape: ModelShape
    device: str  # cpu, cuda, mps
    dtype: str
    load_in: str | None = None  # int8, int4, 8bit, 4bit
    stored_bytes: int | None = None  # of the weights, where more is known of them than their shapes
    loading_bytes: int = 0  # while the weights are read, where that is more than they take afterwards
    threads: int = 1  # on a CPU

    @property
    def weight_bytes(self) -> int:
        if self.stored_bytes is not None:
            return self.stored_bytes
        return self.shape.weight_bytes(self.dtype, self.load_in)

    @property
    def dtype_bytes(self) -> int:
        return DTYPE_BYTES[self.dtype]

    @cached_property
    def has_native(self) -> bool:
        """Whether there will be a native library to compute with, as far as is known without building it."""
        return self.device == "cpu" and expected(cache_folder())

    @property
    def reads_native(self) -> bool:
        """Whether a prompt's layers are C++'s (models/native_prompt.py)."""
        return (
            self.has_native and self.dtype == "float32" and self.load_in in BITS and self.shape.family in ROWS
        )

    @property
    def steps_native(self) -> bool:
        """Whether a step is C++'s (models/native_step.py)."""
        return self.has_native and self.dtype in ("float32", "bfloat16") and self.shape.family in ROWS
