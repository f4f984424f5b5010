"""How a packed matrix lies in memory: the numbers of products.h, without torch."""

from enum import IntEnum

GROUP, BLOCK = 8, 32  # rows that lie together, columns that share a scale
ROUNDED_BYTES = {16: 76, 8: 44}  # of 32 activations that are rounded to so many bits


class Kind(IntEnum):
    """How a matrix is held; the numbers are those of products.h."""

    INT4 = 0
    INT8 = 1

    @property
    def block_bytes(self) -> int:
        """Of 32 columns of 8 rows: codes, then scales and minima in float16."""
        return {Kind.INT4: 160, Kind.INT8: 272}[self]


def packed_shape(kind: Kind, rows: int, columns: int) -> tuple[int, int, int]:
    """[groups, blocks, bytes of a block]; both are filled up with zeros."""
    return -(-rows // GROUP), -(-columns // BLOCK), kind.block_bytes


def packed_bytes(kind: Kind, rows: int, columns: int) -> int:
    groups, blocks, block = packed_shape(kind, rows, columns)
    return groups * blocks * block
