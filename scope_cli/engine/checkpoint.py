"""A lane's state and what belongs to it in, one file out; the file in, whole or refused with a reason.

A safetensors file whose metadata hold the numbers as JSON, with checksums of both. It is written beside the
one before and takes its place when all of it is on the disk: a kill, or a full disk, leaves that one.
"""

from __future__ import annotations

import json
import os
import zlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scope_cli.console.safe import as_json, printable
from scope_cli.errors import UsageError

if TYPE_CHECKING:
    import torch
    from torch import Tensor

FORMAT = 1
NEW = ".new"  # behind the name of one that is being written
BEGIN = b'{"__metadata__"'  # of a header
ROOM = 2048  # bytes that the numbers may grow by before a file gets longer
DTYPES = {  # safetensors' names
    "torch.float64": "F64", "torch.float32": "F32", "torch.float16": "F16", "torch.bfloat16": "BF16",
    "torch.int64": "I64", "torch.int32": "I32", "torch.int16": "I16", "torch.int8": "I8", "torch.uint8": "U8",
    "torch.bool": "BOOL",
}  # fmt: skip


class Refused(UsageError):
    """A file is no state that could be taken up; the message says why."""

    def __init__(self, message: str) -> None:
        super().__init__(
            message, "scope generate --output keeps a state beside a text, scope prompt save one of a prompt"
        )


@dataclass(frozen=True)
class Checkpoint:
    """facts: what JSON takes; tensors: [...] each, on the CPU, none where nothing has been read yet."""

    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write_checkpoint(path: Path, checkpoint: Checkpoint, width: int = 0) -> int:
    """Put it in the place of the one before; how wide its numbers are, for the next one to be as long.

    Raises OSError and leaves the one before.
    """
    facts = as_json(checkpoint.facts)
    if len(facts.encode()) > width:
        width = len(facts.encode()) + ROOM
    facts += " " * (width - len(facts.encode()))
    tensors = {name: one.contiguous() for name, one in sorted(checkpoint.tensors.items())}
    seal = 0
    for tensor in tensors.values():
        seal = zlib.crc32(_bytes_of(tensor), seal)
    seals = f"{zlib.crc32(facts.encode()):08x}{seal:08x}"
    header: dict[str, Any] = {"__metadata__": {"scope": str(FORMAT), "seals": seals, "facts": facts}}
    end = 0
    for name, tensor in tensors.items():
        start, end = end, end + tensor.nbytes
        kind = DTYPES[str(tensor.dtype)]
        header[name] = {"dtype": kind, "shape": list(tensor.shape), "data_offsets": [start, end]}
    head = json.dumps(header, allow_nan=False).encode()
    head += b" " * (-len(head) % 8)
    new = path.with_name(path.name + NEW)
    try:
        with new.open("wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for tensor in tensors.values():
                file.write(_bytes_of(tensor))
            file.flush()
            os.fsync(file.fileno())
        new.replace(path)
    except BaseException:
        with suppress(OSError):
            new.unlink()
        raise
    with suppress(OSError):  # some file systems know no such thing
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    return width


def remove_checkpoint(path: Path) -> None:
    for file in (path, path.with_name(path.name + NEW)):
        with suppress(OSError):
            file.unlink()


def read_facts(path: Path) -> dict[str, Any]:
    """The numbers alone, without torch. Raises Refused."""
    return _head_of(path)[0]


def read_checkpoint(path: Path) -> Checkpoint:
    """All of it, every byte checked; copies, which nobody can change by writing the file. Raises Refused."""
    import torch

    facts, seal, header, start = _head_of(path)
    tensors, found = {}, 0
    try:
        with path.open("rb") as file:
            for name, told in sorted(header.items()):
                file.seek(start + told["data_offsets"][0])
                tensors[name] = torch.empty(told["shape"], dtype=_dtype(told["dtype"]))
                content = _bytes_of(tensors[name])
                if file.readinto(content) != len(content):
                    raise _damaged(path, "it is cut off")
                found = zlib.crc32(content, found)
    except OSError as error:
        raise Refused(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RuntimeError) as error:
        raise _damaged(path, "its header") from error
    if found != seal:
        raise _damaged(path, "a checksum differs")
    return Checkpoint(facts, tensors)


def _dtype(name: str) -> torch.dtype:
    import torch

    found: torch.dtype = getattr(torch, {short: long for long, short in DTYPES.items()}[name][6:])
    return found


def _head_of(path: Path) -> tuple[dict[str, Any], int, dict[str, Any], int]:
    """The numbers, the checksum that the tensors should have, what they are, and where they begin.

    The file is as long as that says.
    """
    try:
        with path.open("rb") as file:  # of this file alone: whoever writes may put another one in its place
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            begins = file.read(len(BEGIN)) == BEGIN or size <= 8
            if length > size and begins:
                raise _damaged(path, "it is cut off" if size > 8 else "it is empty")
            file.seek(8)
            head = json.loads(file.read(min(length, size)))
        told = head.pop("__metadata__")
        version, facts = told["scope"], told["facts"]
        end = sum(one["data_offsets"][1] - one["data_offsets"][0] for one in head.values())
        seals = [int(told["seals"][at : at + 8], 16) for at in (0, 8)]
    except OSError as error:
        raise Refused(f"cannot read {printable(str(path))}: {error.strerror}") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Refused(f"{printable(str(path))} is no state of scope") from error
    if version != str(FORMAT):
        told = f"has format {printable(str(version))}, this version of scope reads {FORMAT}"
        raise Refused(f"{printable(str(path))} {told}")
    if size != 8 + length + end:
        raise _damaged(path, "it is cut off, or longer than it says")
    if zlib.crc32(facts.encode()) != seals[0]:
        raise _damaged(path, "a checksum differs")
    return json.loads(facts), seals[1], head, 8 + length


def _bytes_of(tensor: Tensor) -> memoryview:
    import torch

    content: Any = tensor.reshape(-1).view(torch.uint8).numpy()
    return memoryview(content)


def _damaged(path: Path, why: str) -> Refused:
    return Refused(f"{printable(str(path))} is damaged: {why}")
