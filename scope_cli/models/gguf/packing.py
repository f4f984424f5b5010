"""A GGUF model in, the tensors of its packed form out: from the file's blocks, some rows at a time."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scope_cli.models.gguf import weights
from scope_cli.models.gguf.blocks import codes_of
from scope_cli.models.gguf.convert import GgufModel
from scope_cli.models.gguf.decoder import Form, Weight
from scope_cli.models.gguf.header import Header
from scope_cli.models.gguf.header import Tensor as Stored
from scope_cli.models.tensor_file import Entry, Pieces, ShowBytes, write
from scope_cli.native.layout import GROUP, Kind
from scope_cli.native.weights import Change, Codes, change_from, join, stretches

PACKED, PLAIN = ".packed", ".weight"  # ends of the names of a packed matrix, and of the one it was made of
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
BY_ROWS = (Form.PLAIN, Form.HALVES, Form.JOINED)  # rows of the file are rows of the matrix


def write_plain(gguf: GgufModel, file: Path, progress: ShowBytes) -> None:
    """The weights as transformers reads them, in the file's own precision: a safetensors file."""
    entries = [
        Entry(
            weight.name, DTYPES[weights.dtype_of(gguf.header, weight)], weight.shape, _as_stored(gguf, weight)
        )
        for weight in gguf.described.weights
    ]
    write(file, entries, repr([(one.name, one.stat().st_size) for one in gguf.header.files]), progress)


def _as_stored(gguf: GgufModel, weight: Weight) -> Callable[[], Pieces]:
    return lambda: ((piece, Change()) for piece in weights.pieces(gguf.header, weight))


class Matrix(NamedTuple):
    """How a matrix of the model is to be packed."""

    kind: Kind
    shape: tuple[int, int]
    measured: bool  # whether what packing changes in it counts as the model's loss


def packed_entries(
    gguf: GgufModel, wanted: Mapping[str, Tensor], matrices: Mapping[str, Matrix], shared: Mapping[str, str]
) -> list[Entry] | None:
    """The tensors of a packed model; None where names or shapes of the file are not those of the model.

    wanted: by name, on the meta device; matrices: those that are packed, by the same names; shared: weights
    that the file has under another name
    """
    stored = {weight.name: weight for weight in gguf.described.weights}
    entries, used = [], set()
    for name, tensor in wanted.items():
        matrix = matrices.get(name)
        plain_name = name if matrix is None else name.removesuffix(PACKED) + PLAIN
        shape = tuple(tensor.shape) if matrix is None else matrix.shape
        plain_name = plain_name if plain_name in stored else shared.get(plain_name, plain_name)
        source = stored.get(plain_name)
        used.add(plain_name)
        if source is None or source.shape != shape or (matrix and source.form not in BY_ROWS):
            return None
        if matrix is None:
            pieces = _plain(gguf.header, source, tensor.dtype)
        else:
            pieces = _packed(gguf.header, source, matrix)
        entries.append(Entry(name, tensor.dtype, tuple(tensor.shape), pieces))
    return entries if used == stored.keys() else None


def _plain(header: Header, weight: Weight, dtype: torch.dtype) -> Callable[[], Pieces]:
    def pieces() -> Pieces:
        for numbers in weights.float_pieces(header, weight):
            plain = torch.from_numpy(np.array(numbers)).to(dtype)
            yield plain.view(-1).view(torch.uint8).numpy(), Change()

    return pieces


def _packed(header: Header, weight: Weight, matrix: Matrix) -> Callable[[], Pieces]:
    def pieces() -> Pieces:
        rows = Rows(header, weight)
        for first, last in stretches(*matrix.shape):
            codes, meant = rows.codes(first, last, matrix.kind)
            packed = join(_whole_groups(codes), matrix.kind)
            yield packed.numpy(), change_from(codes, meant) if matrix.measured else Change()

    return pieces


def _whole_groups(rows: Codes) -> Codes:
    """With rows of zeros where the last group is not full."""
    lacking = -len(rows.codes) % GROUP
    if not lacking:
        return rows

    def longer(one: Tensor) -> Tensor:
        return torch.cat([one, one.new_zeros(lacking, *one.shape[1:])])

    minimum = None if rows.minimum is None else longer(rows.minimum)
    return Codes(longer(rows.codes), longer(rows.scale), minimum)


class Rows:
    """The rows of a weight in the model's order, wherever they lie in the file."""

    def __init__(self, header: Header, weight: Weight) -> None:
        self.columns = weight.shape[-1]
        self.parts = [header.tensors[source] for source in weight.sources]
        self.raw = [_mapped(part) for part in self.parts]
        order = np.concatenate([np.arange(len(raw)) for raw in self.raw])
        if weight.form is Form.HALVES:  # rows 0, 2, 4 ... of a head, then 1, 3, 5 ...
            order = np.ascontiguousarray(order.reshape(weight.heads, -1, 2).swapaxes(1, 2)).reshape(-1)
        self.order: NDArray[Any] = order
        self.part = np.repeat(np.arange(len(self.raw)), [len(raw) for raw in self.raw])

    def codes(self, first: int, last: int, kind: Kind) -> tuple[Codes, Tensor]:
        """Codes of some rows, and the same rows as the file means them, [rows, blocks, BLOCK]."""
        found = []
        for n in np.unique(self.part[first:last]):
            own = self.order[first:last][self.part[first:last] == n]
            found.append(self._codes(self.raw[n][own], self.parts[n].kind.name, kind))
        if len(found) == 1:
            return found[0]
        codes, scales, minima = zip(*(codes for codes, _ in found), strict=True)
        minimum = None if minima[0] is None else torch.cat(minima)
        joined = Codes(torch.cat(codes), torch.cat(scales), minimum)
        return joined, torch.cat([meant for _, meant in found])

    def _codes(self, raw: NDArray[np.uint8], type_name: str, kind: Kind) -> tuple[Codes, Tensor]:
        def numbers() -> Tensor:
            return torch.from_numpy(weights.numbers(raw, type_name, self.columns))

        return codes_of(raw, type_name, numbers, kind)


def _mapped(tensor: Stored) -> NDArray[np.uint8]:
    """uint8 [rows, bytes of a row], mapped"""
    rows = tensor.shape[0] if len(tensor.shape) == 2 else 1
    flat = np.memmap(tensor.file, np.uint8, "r", tensor.offset, (tensor.bytes,))
    return flat.reshape(rows, -1)
