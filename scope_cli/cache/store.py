"""The keys and values of one layer in their formats: packed as they come, unpacked as they are looked at.

Packed keys and some values are turned (formats/base.py). Attention takes them so, with turned queries, and
turns its output back; whoever else wants to see them gets them turned back. The parts lie in memory as the
kernels read them (models/slot_attention.py, native/slots.h).
"""

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor

from scope_cli.formats.base import Format, SlotFormat
from scope_cli.formats.hadamard import hadamard, turn

Parts = tuple[Tensor, ...]
Put = Callable[["SlotStore", Tensor, Tensor, Parts], None]  # keys, values, [kv_heads, tokens, head_dim]


def put(into: Tensor, at: tuple[Any, ...], new: Tensor, runs: Tensor) -> None:
    """`into[at] = new` in the lanes that run; the others write back what stands there.

    runs: bool, [lanes, 1, ...]. Not scatter_, for which a compiled step would copy the whole buffer.
    """
    into[at] = torch.where(runs, new, into[at])


def by_numbers(tensor: Tensor) -> Any:
    """What single numbers are put into and taken from: on a CPU the tensor's memory, without PyTorch's calls.

    They take long right after a step, which has filled the CPU's caches with weights.
    """
    array: Any = tensor.numpy() if tensor.device.type == "cpu" else None
    return tensor if array is None else memoryview(array)


class SlotStore:
    """What lies in a layer's slots.

    keys, values: the parts of each, [*heads, slots, ...], the numbers first
    heads: the leading axes, (lanes, kv_heads), or (kv_heads,) of a prompt by itself
    """

    def __init__(
        self,
        form: SlotFormat,
        heads: tuple[int, ...],
        slots: int,
        head_dim: int,
        dtype: torch.dtype,
        device: torch.device,
        zeros: bool = True,
    ) -> None:
        """zeros: a NaN in a free slot would spread through a mask; without, pages come as they are filled"""
        self.form, self.head_dim, self.dtype = form, head_dim, dtype
        self.packs = form.packs
        self.keys_in_kernel = form.keys != "int4"  # what slot_attention.py reads
        self.key_format, self.value_format = form.key_format, form.value_format
        self.turns_keys, self.turns_values = form.turns_keys, form.turns_values

        self.hadamard = hadamard(head_dim, torch.promote_types(dtype, torch.float32), device)
        both = self.key_format == self.value_format  # then keys and values are packed, and put, together
        sides = [self.key_format] if both else [self.key_format, self.value_format]
        self.buffers = [
            (torch.zeros if zeros else torch.empty)(
                2 if both else 1, *heads, slots, *part.tail,
                dtype=dtype if part.dtype is None else getattr(torch, part.dtype),
                device=device,
            )
            for one in sides
            for part in one.parts(head_dim)
        ]  # fmt: skip
        self._key_parts = len(self.key_format.parts(head_dim))
        self._value_parts = len(self.value_format.parts(head_dim))
        self.names = [
            f"{side}_{part.name}" if part.name else f"{side}s"
            for side, one in (("key", self.key_format), ("value", self.value_format))
            for part in one.parts(head_dim)
        ]
        self.both = both

    # Views are made when they are asked for. A compiled step that met them beside the buffers, which it
    # writes, would copy all slots and back, for it does not look where tensors overlap.

    @property
    def keys(self) -> Parts:
        return tuple(buffer[0] for buffer in self.buffers[: self._key_parts])

    @property
    def values(self) -> Parts:
        return tuple(buffer[-1] for buffer in self.buffers[-self._value_parts :])

    @property
    def parts(self) -> Parts:
        return (*self.keys, *self.values)

    def tensors(self) -> dict[str, Tensor]:
        """By name: keys, key_scales, values, value_groups, ..."""
        return dict(zip(self.names, self.parts, strict=True))

    def pack(self, keys: Tensor, values: Tensor) -> Parts:
        """[..., head_dim] each, as the model computed them, into parts as in `parts`."""
        return self.pack_turned(*self.turn(keys, values))

    def turn(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """[..., head_dim] each: turned where that is how they lie in their slots."""
        return self._turn(keys) if self.turns_keys else keys, self._turn(
            values
        ) if self.turns_values else values

    def turned_queries(self, queries: Tensor) -> Tensor:
        """Queries whose products with keys, as they lie in their slots, are those of the plain ones."""
        return self._turn(queries) if self.turns_keys else queries

    def turned_back(self, out: Tensor) -> Tensor:
        """What attention over values, as they lie in their slots, comes to."""
        return self._turn(out) if self.turns_values else out

    def _turn(self, x: Tensor) -> Tensor:
        return turn(x, self.hadamard)

    def pack_turned(self, keys: Tensor, values: Tensor) -> Parts:
        return (*self.key_format.pack(keys), *self.value_format.pack(values))

    def put_rows(self, keys: Tensor, values: Tensor, into: Parts) -> None:
        """Pack tokens, [..., head_dim], into parts, which may be slots."""
        for to, new in zip(into, self.pack(keys, values), strict=True):
            to.copy_(new)

    def put(self, at: tuple[Tensor, ...], keys: Tensor, values: Tensor, runs: Tensor) -> None:
        """A turned token for each lane and KV head, [lanes, kv_heads, head_dim], in the lanes that run.

        at: lanes, heads and slots, [lanes, kv_heads] together; runs: bool, [lanes, 1]
        """
        if self.both:
            parts = self.key_format.pack(torch.stack([keys, values]))
        else:
            parts = tuple(part.unsqueeze(0) for part in self.pack_turned(keys, values))
        for into, new in zip(self.buffers, parts, strict=True):
            put(into, (slice(None), *at), new, runs.view(*runs.shape, *[1] * (new.dim() - 3)))

    def set(self, at: Any, parts: Parts) -> None:
        """Put packed tokens into the slots at an index of the leading axes."""
        for into, new in zip(self.parts, parts, strict=True):
            into[at] = new

    def get(self, at: Any) -> Parts:
        """The parts at an index of the leading axes."""
        return tuple(part[at] for part in self.parts)

    def turned(self, at: Any, into: Tensor | None = None, room: int = 0) -> tuple[Tensor, Tensor]:
        """Keys and values at an index, as turned queries meet them; views where nothing is packed.

        into: where to unpack them, [lanes, at least so many numbers]; the index keeps the axis of lanes
        room: for so many tokens more, after them
        """
        return self.turned_parts(self.get(at), into, room)

    def turned_parts(
        self, parts: Sequence[Tensor], into: Tensor | None = None, room: int = 0
    ) -> tuple[Tensor, Tensor]:
        """The same of parts as in `parts`."""
        keys, values = parts[: len(self.keys)], parts[len(self.keys) :]
        if not self.packs:
            return keys[0], values[0]
        *heads, tokens, _ = keys[0].shape
        size = (*heads, tokens + room, self.head_dim)
        if into is None:
            to_keys, to_values = (keys[0].new_empty(size, dtype=self.dtype) for _ in range(2))
        else:
            each = prod(size[1:])
            to_keys, to_values = into[:, :each].view(size), into[:, each : 2 * each].view(size)
        self.key_format.unpack(keys, to_keys[..., :tokens, :])
        self.value_format.unpack(values, to_values[..., :tokens, :])
        return to_keys, to_values

    def products(self, queries: Tensor, at: Any) -> Tensor:
        """Of queries, [lanes, kv_heads, many, head_dim], with the keys at an index: [..., many, slots]."""
        keys = _unpacked(self.key_format, tuple(part[at] for part in self.keys), self.head_dim, self.dtype)
        return self.turned_queries(queries) @ keys.to(queries.dtype).transpose(2, 3)

    def plain_keys(self, at: Any) -> Tensor:
        """Keys at an index as the model computed them, but for rounding; a view where they are plain."""
        keys = _unpacked(self.key_format, tuple(part[at] for part in self.keys), self.head_dim, self.dtype)
        return self._turn(keys) if self.turns_keys else keys

    def plain_values(self, at: Any) -> Tensor:
        """Values, in the same way."""
        parts = tuple(part[at] for part in self.values)
        values = _unpacked(self.value_format, parts, self.head_dim, self.dtype)
        return self._turn(values) if self.turns_values else values


def _unpacked(form: Format, parts: Parts, head_dim: int, dtype: torch.dtype) -> Tensor:
    if not form.packs:
        return parts[0]
    return form.unpack(parts, parts[0].new_empty((*parts[0].shape[:-1], head_dim), dtype=dtype))
