"""How keys or values lie in their slots: what a token takes, how it is packed, how a tile is unpacked.

A format is a frozen dataclass in a file of its own. It holds no state: its *parts*, numbers and their scales,
are tensors of the cache, [lanes, kv_heads, slots, ...] each. A token is packed once, when it is written.

Keys that are packed, and values in 4 bits, are turned first: multiplied by an orthogonal Hadamard matrix over
the head, after RoPE. A channel that is large in every token is spread over all of them then, and one scale a
token is enough. Products of turned queries and turned keys are those of the plain ones; an output of turned
values is turned back. `layout` is what the kernels read (slot_attention.PackedSlots).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from math import prod
from typing import TYPE_CHECKING, ClassVar

from scope_cli.geometry import Geometry, LayerGeometry

if TYPE_CHECKING:
    from torch import Tensor

SMALLEST_SCALE = 2.0**-14  # float16's smallest normal number: a finer step would round the scale itself
NAMES = ("plain", "int8", "int4")
NUMBER_BYTES = {"int8": 1, "uint8": 1, "float16": 2}


@dataclass(frozen=True)
class Part:
    """One tensor of a format: [lanes, kv_heads, slots, *tail]."""

    name: str  # "" for the numbers themselves
    tail: tuple[int, ...]
    dtype: str | None  # None: the cache's own

    def token_bytes(self, dtype_bytes: int) -> int:
        """Of one token of one KV head."""
        return prod(self.tail) * (NUMBER_BYTES[self.dtype] if self.dtype else dtype_bytes)


class Format:
    """The base of every format; a subclass says its parts, packs and unpacks."""

    packs: ClassVar[bool] = True  # False: what is read is what lies there
    turns_keys: ClassVar[bool] = True
    turns_values: ClassVar[bool] = True

    def problem(self, head_dim: int) -> str | None:
        """Why heads of this width cannot be packed."""
        return None

    def parts(self, head_dim: int) -> tuple[Part, ...]:
        """The tensors of one layer, the numbers first."""
        raise NotImplementedError

    def pack(self, x: Tensor) -> tuple[Tensor, ...]:
        """[..., head_dim], turned where that is wanted, into parts, [..., *tail] each."""
        raise NotImplementedError

    def unpack(self, parts: Sequence[Tensor], out: Tensor) -> Tensor:
        """What the parts stand for, written into `out`, [..., head_dim], in its dtype; returns it."""
        raise NotImplementedError

    def token_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """One key, or one value, of one KV head, scales included."""
        return sum(part.token_bytes(dtype_bytes) for part in self.parts(head_dim))


def format_of(name: str) -> Format:
    """The format that the file of that name holds."""
    found: Format = import_module(f"scope_cli.formats.{name}").FORMAT
    return found


@dataclass(frozen=True)
class SlotFormat:
    """In which formats a cache's keys and values lie."""

    keys: str = "plain"
    values: str = "plain"

    @cached_property
    def key_format(self) -> Format:
        return format_of(self.keys)

    @cached_property
    def value_format(self) -> Format:
        return format_of(self.values)

    @property
    def packs(self) -> bool:
        return (self.keys, self.values) != ("plain", "plain")

    @property
    def turns_keys(self) -> bool:
        return self.key_format.turns_keys

    @property
    def turns_values(self) -> bool:
        return self.value_format.turns_values

    def token_bytes(self, head_dim: int, dtype_bytes: int) -> int:
        """Key and value of one token of one KV head, scales included."""
        if not self.packs:
            return 2 * head_dim * dtype_bytes
        return sum(one.token_bytes(head_dim, dtype_bytes) for one in (self.key_format, self.value_format))

    def slot_bytes(self, layer: LayerGeometry, dtype_bytes: int) -> int:
        """Key and value of one token in a layer, all KV heads, scales included."""
        return layer.kv_heads * self.token_bytes(layer.head_dim, dtype_bytes)

    def policy_token_bytes(self, geometry: Geometry, dtype_bytes: int) -> int:
        """Key and value of one token in all layers under the policy."""
        return sum(self.slot_bytes(layer, dtype_bytes) for layer in geometry.layers if layer.kind == "full")

    def problem(self, head_dim: int) -> str | None:
        """Why heads of this width cannot be packed."""
        return self.key_format.problem(head_dim) or self.value_format.problem(head_dim)

    def __str__(self) -> str:
        return next((short for short, pair in SHORT.items() if pair == self), f"{self.keys}, {self.values}")


PLAIN = SlotFormat()
SHORT = {  # what `--kv` takes
    "plain": PLAIN,
    "int8": SlotFormat("int8", "int8"),
    "k8v4": SlotFormat("int8", "int4"),
}
