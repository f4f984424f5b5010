"""Tensors in, a safetensors file out, a piece at a time; what a killed process had written is kept.

Format: https://huggingface.co/docs/safetensors, a JSON head and the tensors one after the other. The file
grows under another name, and a note beside it says which tensors are on the disk.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from scope_cli.files import replace_file
from scope_cli.native.weights import Change

NAMES = {torch.float32: "F32", torch.bfloat16: "BF16", torch.float16: "F16", torch.uint8: "U8"}
ALIGNMENT = 64  # of the first tensor; each size is a multiple of its numbers' own
MARK_BYTES = 1 << 25  # after which what is on the disk is noted

ShowBytes = Callable[[int, int], None]  # bytes written, of how many
Pieces = Iterator[tuple[Any, Change]]  # numbers in the order of the shape; what packing changed in them


@dataclass(frozen=True)
class Entry:
    """One tensor, made when it is its turn."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    pieces: Callable[[], Pieces]

    @classmethod
    def of(cls, name: str, tensor: Tensor) -> "Entry":
        """One that is there already."""

        def pieces() -> Pieces:
            yield tensor.contiguous().view(-1).view(torch.uint8).numpy(), Change()

        return cls(name, tensor.dtype, tuple(tensor.shape), pieces)

    @property
    def bytes(self) -> int:
        return prod(self.shape) * self.dtype.itemsize


def write(file: Path, entries: Sequence[Entry], key: str, progress: ShowBytes | None = None) -> Change:
    """`key`: of what the content depends on; a file that was begun with another one is begun again."""
    ordered = sorted(entries, key=lambda entry: (-entry.dtype.itemsize, entry.name))
    head = _head(ordered, key)
    partial, note = _unfinished(file)
    done, change = _resumed(partial, note, head, ordered)
    total = written = 0
    for n, entry in enumerate(ordered):
        total += entry.bytes
        written += entry.bytes if n < done else 0
    with partial.open("r+b" if done else "wb") as output:
        if not done:
            output.write(head)
        output.truncate(len(head) + written)
        output.seek(0, os.SEEK_END)
        marked = written
        for n, entry in enumerate(ordered[done:], done + 1):
            start = written
            for piece, own in entry.pieces():
                view = np.ascontiguousarray(piece).data.cast("B")
                output.write(view)
                written, change = written + view.nbytes, change + own
                if progress:
                    progress(written, total)
            assert written - start == entry.bytes, f"{entry.name} has another size than its shape says"
            if written - marked >= MARK_BYTES:
                output.flush()
                os.fsync(output.fileno())
                replace_file(note, json.dumps([n, *change], allow_nan=False))
                marked = written
    partial.replace(file)
    note.unlink(missing_ok=True)
    return change


def _head(entries: Sequence[Entry], key: str) -> bytes:
    said: dict[str, Any] = {"__metadata__": {"format": "pt", "key": key}}
    start = 0
    for entry in entries:
        end = start + entry.bytes
        said[entry.name] = {
            "dtype": NAMES[entry.dtype],
            "shape": list(entry.shape),
            "data_offsets": [start, end],
        }
        start = end
    text = json.dumps(said, separators=(",", ":"), allow_nan=False).encode()
    text += b" " * (-(len(text) + 8) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _unfinished(file: Path) -> tuple[Path, Path]:
    """The file that grows, and its note."""
    return file.with_name(f".{file.name}.part"), file.with_name(f".{file.name}.part.json")


def _resumed(partial: Path, note: Path, head: bytes, entries: Sequence[Entry]) -> tuple[int, Change]:
    """How many tensors are on the disk already, and what packing changed in them."""
    with suppress(OSError, ValueError, TypeError):
        done, changed, total = json.loads(note.read_text(encoding="utf-8"))
        needed = len(head) + sum(entry.bytes for entry in entries[:done])
        with partial.open("rb") as begun:
            if begun.read(len(head)) == head and partial.stat().st_size >= needed:
                return int(done), Change(float(changed), float(total))
    return 0, Change()
