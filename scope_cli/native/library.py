"""The native library, built at first use; its products, on tensors.

`library()` is None where there is none, and `why_not()` says why: who uses it has a way in plain PyTorch.
$SCOPE_NATIVE is off, plain, avx2 or avx512; else the best instructions of this CPU are used. Tests have it at
all: the library holds every set then, and `use` chooses.
"""

import ctypes
import os
from ctypes import POINTER, c_int32, c_int64, c_void_p
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from scope_cli.errors import first_line
from scope_cli.files import cache_folder
from scope_cli.native.build import SETS, SWITCH, BuildError, NotKept, library_file
from scope_cli.native.layout import Kind, packed_shape

INSTRUCTIONS = tuple(SETS)


@cache
def library() -> "Library | None":
    """None where it cannot be had, or is not wanted."""
    found = _found()
    return found if isinstance(found, Library) else None


def why_not() -> str | None:
    """Why there is no library, in one line; None where there is one, or nobody wants it."""
    found = _found()
    return None if isinstance(found, Library) or os.environ.get(SWITCH) == "off" else found


@cache
def _found() -> "Library | str":
    if os.environ.get(SWITCH) == "off":
        return f"${SWITCH} is off"
    try:
        try:
            return Library(library_file(cache_folder()))
        except NotKept:
            with TemporaryDirectory(prefix="scope-native-") as own:  # once it is loaded its file may go
                return Library(library_file(Path(own)))
    except (BuildError, OSError, AttributeError) as error:
        return first_line(error)


class Weight(ctypes.Structure):
    """A packed matrix, as products.h has it; `data` has to outlive it."""

    _fields_ = [
        ("kind", c_int32),
        ("rows", c_int32),
        ("columns", c_int32),
        ("spare", c_int32),
        ("data", c_void_p),
    ]


def weight_of(packed: Tensor, kind: Kind, rows: int, columns: int) -> Weight:
    """packed: uint8 [groups, blocks, bytes of a block], which the caller keeps"""
    assert packed.is_contiguous() and packed.shape == packed_shape(kind, rows, columns)
    return Weight(int(kind), rows, columns, 0, packed.data_ptr())


class Library:
    """The functions of the library."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.functions = functions = ctypes.CDLL(str(file))
        functions.scope_unpack.argtypes = [POINTER(Weight), c_void_p, c_int64, c_void_p]
        functions.scope_product.argtypes = [
            POINTER(Weight), c_void_p, c_int64, c_int32, c_void_p, c_void_p, c_int64, c_int32,
        ]  # fmt: skip
        functions.scope_product.restype = functions.scope_unpack.restype = None
        functions.scope_pick_one.argtypes, functions.scope_pick_one.restype = [c_void_p], c_int64
        functions.scope_use_instructions.argtypes = [c_int32]
        functions.scope_use_instructions.restype = c_int32
        functions.scope_instructions.restype = c_int32

    @property
    def instructions(self) -> str:
        return INSTRUCTIONS[self.functions.scope_instructions()]

    def use(self, instructions: str) -> str:
        """Returns those in use from now on: these, or what this CPU and this library have instead."""
        at = INSTRUCTIONS.index(instructions)
        return INSTRUCTIONS[self.functions.scope_use_instructions(at)]

    def product(self, weight: Weight, x: Tensor, bias: Tensor | None = None) -> Tensor:
        """x: float32 [rows, columns] to float32 [rows, rows of the weight]"""
        rows = x.shape[0]
        out = torch.empty(rows, weight.rows)
        self.functions.scope_product(
            weight, x.data_ptr(), x.stride(0), rows, None if bias is None else bias.data_ptr(),
            out.data_ptr(), weight.rows, torch.get_num_threads(),
        )  # fmt: skip
        return out

    def unpack(self, weight: Weight, ids: Tensor) -> Tensor:
        """ids: int64 [...], contiguous, to float32 [count, columns]"""
        count = ids.numel()
        out = torch.empty(count, weight.columns)
        self.functions.scope_unpack(weight, ids.data_ptr(), count, out.data_ptr())
        return out
