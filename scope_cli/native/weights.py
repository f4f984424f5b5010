"""Rows of a matrix in, groups of 8 rows in blocks of 32 columns out, as products.h has them."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from scope_cli.native.layout import BLOCK, GROUP, Kind, packed_shape

AT_ONCE = 1 << 20  # weights that are packed at once: what bounds the memory that packing takes


class Codes(NamedTuple):
    """Some rows of a matrix in blocks of 32 columns, as whole numbers.

    With 4 bits weight = scale * code + minimum, code 0 to 15; with 8 bits weight = scale * code, -128 to 127.
    """

    codes: Tensor  # uint8 or int8 [rows, blocks, BLOCK]
    scale: Tensor  # float16 [rows, blocks]
    minimum: Tensor | None  # float16 [rows, blocks]


def stretches(rows: int, columns: int) -> Iterator[tuple[int, int]]:
    """(first, last) of as many rows as are packed at once: whole groups, but for the last."""
    at_once = max(1, AT_ONCE // (columns * GROUP)) * GROUP
    for first in range(0, rows, at_once):
        yield first, min(first + at_once, rows)


def pack(weight: Tensor, kind: Kind) -> Tensor:
    """weight: [rows, columns], any dtype of floats; to uint8 [groups, blocks, bytes of a block]"""
    return pack_measured(weight, kind)[0]


class Change(NamedTuple):
    """What rounding did to weights."""

    changed: float = 0.0  # sum of the squares of the change
    total: float = 0.0  # sum of the squares of the weights

    def __add__(self, other: "Change") -> "Change":  # type: ignore[override]
        return Change(self.changed + other.changed, self.total + other.total)

    @property
    def loss(self) -> float:
        """The root mean square of the change, as a share of the weights'."""
        return (self.changed / self.total) ** 0.5 if self.total else 0.0


def pack_measured(weight: Tensor, kind: Kind, measure: bool = False) -> tuple[Tensor, Change]:
    """The packed matrix, and what that changed, if it is to be measured."""
    rows, columns = weight.shape
    packed = torch.empty(packed_shape(kind, rows, columns), dtype=torch.uint8, device=weight.device)
    change = Change()
    if weight.is_meta:
        return packed, change
    for first, last in stretches(rows, columns):
        some = weight[first:last]
        own = pack_rows(some, kind)
        packed[first // GROUP : -(-last // GROUP)] = own
        if measure:
            change += change_of(some, own, kind)
    return packed, change


def change_of(rows: Tensor, packed: Tensor, kind: Kind) -> Change:
    """What packing changed in these rows, [rows, columns]."""
    return _change(rows.float(), unpack(packed, kind, *rows.shape))


def change_from(rows: Codes, meant: Tensor) -> Change:
    """How far codes are from what they were made of, [rows, blocks, BLOCK]."""
    return _change(meant, numbers_of(rows))


def _change(before: Tensor, after: Tensor) -> Change:
    return Change(float((after - before).square().sum()), float(before.square().sum()))


def pack_rows(rows: Tensor, kind: Kind) -> Tensor:
    """A few rows, [rows, columns]."""
    blocks = in_blocks(rows)
    if kind is Kind.INT4:
        return join(round_to_4(blocks), kind)
    return join(round_to_8(blocks), kind)


def in_blocks(rows: Tensor, of_rows: int = GROUP) -> Tensor:
    """[rows, columns] to [rows, blocks, BLOCK], filled up with zeros: the rows to a multiple of `of_rows`."""
    count, columns = rows.shape
    if count % of_rows or columns % BLOCK:
        rows = torch.nn.functional.pad(rows, (0, -columns % BLOCK, 0, -count % of_rows))
    return rows.unflatten(1, (-1, BLOCK))


def round_to_4(blocks: Tensor) -> Codes:
    """blocks: [rows, blocks, BLOCK]; the lowest weight of a block gets code 0, the highest 15."""
    blocks = blocks.float()
    low, high = blocks.aminmax(dim=2, keepdim=True)
    minimum = low.half()
    scale = ((high - minimum.float()) / 15).half()
    codes = ((blocks - minimum.float()) / scale.float()).nan_to_num_(0, 0, 0).round_().clamp_(0, 15)
    return Codes(codes.to(torch.uint8), scale.squeeze(2), minimum.squeeze(2))


def round_to_8(blocks: Tensor) -> Codes:
    """blocks: [rows, blocks, BLOCK]; the largest magnitude of a block gets code 127 or -127."""
    blocks = blocks.float()
    scale = (blocks.abs().amax(2, keepdim=True) / 127).half()
    codes = (blocks / scale.float()).nan_to_num_(0, 0, 0).round_().clamp_(-127, 127)
    return Codes(codes.to(torch.int8), scale.squeeze(2), None)


def join(rows: Codes, kind: Kind) -> Tensor:
    """Codes of whole groups of rows to uint8 [groups, blocks, bytes of a block]."""
    if kind is Kind.INT4:
        assert rows.minimum is not None
        lower, upper = rows.codes.split(BLOCK // 2, 2)
        codes, scales = lower | upper << 4, [rows.scale, rows.minimum]
    else:
        codes, scales = rows.codes.view(torch.uint8) ^ 128, [rows.scale]
    fours = codes.unflatten(2, (-1, 4)).unflatten(0, (-1, GROUP))  # [groups, GROUP, blocks, fours, 4]
    parts = [fours.permute(0, 2, 3, 1, 4).flatten(2)]
    for scale in scales:
        own = scale.unflatten(0, (-1, GROUP)).transpose(1, 2).contiguous()  # [groups, blocks, GROUP]
        parts.append(own.view(torch.uint8))
    return torch.cat(parts, 2)


def split(packed: Tensor, kind: Kind) -> Codes:
    """The inverse of `join`."""
    planes = 16 * (2 if kind is Kind.INT4 else 1)
    codes = packed[:, :, :-planes].unflatten(2, (-1, GROUP, 4)).permute(0, 3, 1, 2, 4)
    codes = codes.flatten(3).flatten(0, 1)
    halves = packed[:, :, -planes:].contiguous().view(torch.float16).unflatten(2, (-1, GROUP))
    scales = halves.permute(2, 0, 3, 1).flatten(1, 2)  # [scale, minimum; rows; blocks]
    if kind is Kind.INT4:
        return Codes(torch.cat([codes & 15, codes >> 4], 2), scales[0], scales[1])
    return Codes((codes ^ 128).view(torch.int8), scales[0], None)


def numbers_of(rows: Codes) -> Tensor:
    """float32 [rows, blocks, BLOCK]"""
    numbers = rows.codes.float() * rows.scale.float().unsqueeze(2)
    return numbers if rows.minimum is None else numbers + rows.minimum.float().unsqueeze(2)


def unpack(packed: Tensor, kind: Kind, rows: int, columns: int) -> Tensor:
    """float32 [rows, columns]"""
    return numbers_of(split(packed, kind)).flatten(1)[:rows, :columns]


def unpack_rows(packed: Tensor, kind: Kind, columns: int, ids: Tensor) -> Tensor:
    """Rows `ids`, int64 [count], as float32 [count, columns]; for a machine without the library."""
    groups = unpack(packed[ids // GROUP], kind, len(ids) * GROUP, columns)
    return groups.unflatten(0, (-1, GROUP))[torch.arange(len(ids)), ids % GROUP]
