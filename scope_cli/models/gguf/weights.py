"""Tensors of GGUF files in, numbers out: one piece at a time, in the file's own precision.

What is stored as F32, F16 or BF16 stays so; everything else becomes float32, which holds it without loss.
"""

from collections.abc import Iterator
from math import prod
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from scope_cli.models.gguf.decoder import Described, Form, Weight
from scope_cli.models.gguf.header import Header, Tensor

PIECE = 1 << 20  # weights that are in memory at once, of a tensor whose rows keep their order
PLAIN = {"F32": ("F32", "<f4"), "F16": ("F16", "<f2"), "BF16": ("BF16", "<u2")}  # in safetensors, in numpy


def file_bytes(header: Header, described: Described) -> int:
    """What a plain file of the weights takes, but for the JSON in front."""
    return sum(_bytes(header, weight) for weight in described.weights)


def float_pieces(header: Header, weight: Weight) -> Iterator[NDArray[np.float32]]:
    """The weight's numbers in the order of its shape, in float32."""
    kind = dtype_of(header, weight)
    for piece in pieces(header, weight):
        yield _from_bfloat16(piece) if kind == "BF16" else piece.astype(np.float32, copy=False)


def _from_bfloat16(bits: NDArray[Any]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def dtype_of(header: Header, weight: Weight) -> str:
    """In which a weight is written: F32, F16 or BF16."""
    kinds = {header.tensors[source].kind.name for source in weight.sources}
    stays = len(kinds) == 1 and weight.form is not Form.OFFSET  # one less may need more digits
    return PLAIN.get(kinds.pop(), ("F32", ""))[0] if stays else "F32"


def _bytes(header: Header, weight: Weight) -> int:
    return prod(weight.shape) * (4 if dtype_of(header, weight) == "F32" else 2)


def pieces(header: Header, weight: Weight) -> Iterator[NDArray[Any]]:
    """The weight's numbers in the order of its shape."""
    tensors = [header.tensors[source] for source in weight.sources]
    plain = dtype_of(header, weight) != "F32"
    if weight.form is Form.TRANSPOSED:
        columns = np.concatenate(list(_rows(tensors[0], 0, _row_count(tensors[0]), plain)))
        yield np.ascontiguousarray(columns.T)
    elif weight.form is Form.JOINED:
        for n in range(prod(tensors[0].shape[:-2])):  # experts; 1 of a matrix
            for tensor in tensors:
                rows = tensor.shape[-2]
                yield from _rows(tensor, n * rows, (n + 1) * rows, plain)
    elif weight.form is Form.HALVES:
        yield from _halves(tensors[0], weight.heads, plain)
    else:
        for piece in _rows(tensors[0], 0, _row_count(tensors[0]), plain):
            yield piece - np.float32(1) if weight.form is Form.OFFSET else piece


def _halves(tensor: Tensor, heads: int, plain: bool) -> Iterator[NDArray[Any]]:
    """Rows 0, 2, 4, ... of each head, then 1, 3, 5, ...; of a bias, which is one row, its numbers."""
    if len(tensor.shape) == 1:
        (row,) = _rows(tensor, 0, 1, plain)
        yield np.ascontiguousarray(row.reshape(heads, -1, 2).swapaxes(1, 2)).reshape(-1)
        return
    rows = tensor.shape[0] // heads
    for head in range(heads):
        whole = np.concatenate(list(_rows(tensor, head * rows, (head + 1) * rows, plain)))
        yield np.concatenate([whole[0::2], whole[1::2]])


def _row_count(tensor: Tensor) -> int:
    return prod(tensor.shape[:-1])


def _rows(tensor: Tensor, start: int, end: int, plain: bool) -> Iterator[NDArray[Any]]:
    """Rows of a tensor, [rows, columns], some at a time; of a vector the one row."""
    columns = tensor.shape[-1]
    at_once = max(1, PIECE // columns)
    row_bytes = columns // tensor.kind.weights * tensor.kind.bytes
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset + start * row_bytes)
        for first in range(start, end, at_once):
            count = min(at_once, end - first)
            yield _numbers(file, tensor.kind.name, count, columns, count * row_bytes, plain)


def _numbers(
    file: BinaryIO, kind: str, rows: int, columns: int, count_bytes: int, plain: bool
) -> NDArray[Any]:
    data = np.frombuffer(file.read(count_bytes), np.uint8)
    if plain:
        return data.view(PLAIN[kind][1]).reshape(rows, columns)
    return numbers(data.reshape(rows, -1), kind, columns)


def numbers(raw: NDArray[np.uint8], kind: str, columns: int) -> NDArray[np.float32]:
    """raw: [rows, bytes of a row] of that type to float32 [rows, columns]"""
    if kind == "BF16":
        return _from_bfloat16(np.ascontiguousarray(raw).view("<u2"))
    if kind in PLAIN:
        return np.ascontiguousarray(raw).view(PLAIN[kind][1]).astype(np.float32, copy=False)
    from gguf.constants import GGMLQuantizationType
    from gguf.quants import dequantize

    with np.errstate(all="ignore"):  # a scale that is no number is told where its weights are used
        return dequantize(raw, GGMLQuantizationType[kind]).reshape(len(raw), columns)
