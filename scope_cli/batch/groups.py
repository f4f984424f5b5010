"""Lengths of prompts in, groups out: rows whose lanes are alike share one rectangle of slots.

A cache is a rectangle: every lane has the slots of the largest. Groups are made once, from all rows that
are there, and kept in the ledger: a lane's numbers depend on the rectangle it lies in, so a job that was
stopped has to go on with the same ones, whatever is left of it.
"""

from array import array
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from typing import Any, Literal
from zlib import crc32

from scope_cli.cache.shape import CacheShape
from scope_cli.engine.chunks import chunk_ends
from scope_cli.engine.plan import LanePlan
from scope_cli.engine.workspace import workspace
from scope_cli.formats.base import SlotFormat
from scope_cli.geometry import Geometry
from scope_cli.models.target import Target

MOST_WASTE = 0.25  # of a rectangle's slots
Order = Literal["longest", "input"]


@dataclass(frozen=True)
class Demand:
    """What one row needs, as far as sizes decide it."""

    number: int  # of the row
    prompt_tokens: int
    shape: CacheShape  # of a cache for it alone
    planned_tokens: int  # of its output, at most
    staging_bytes: int  # of its prompt, while it is read
    alone: bool  # its slots are known only when it has been read: one lane
    reading_bytes: int = 0  # beside cache and staging, while a chunk of its prompt is read
    step_bytes: int = 0  # beside the cache, in a step of its lane
    begins: tuple[int, ...] = ()  # a hash of the prompt up to the end of each chunk that may be copied

    @classmethod
    def of(
        cls, number: int, plan: LanePlan, target: Target, chunk: int, prompt_ids: Sequence[int] = ()
    ) -> "Demand":
        """chunk: `prefill.chunk`"""
        staged = plan.prompt.staging_bytes(target.shape.geometry, target.dtype_bytes, plan.shape.form)
        work = workspace(target, plan, chunk)
        return cls(
            number,
            plan.prompt_tokens,
            plan.shape,
            plan.max_new_tokens,
            staged,
            alone=plan.prompt.late,
            reading_bytes=max(0, work.prefill - staged),
            step_bytes=work.decode,
            begins=tuple(hashes_of(prompt_ids, chunk_ends(len(prompt_ids), chunk, target.device))),
        )


@dataclass(frozen=True)
class Group:
    number: int
    shape: CacheShape  # with its lanes
    rows: int
    alone: bool
    staging_bytes: int  # the largest of its prompts'
    lane_bytes: int  # of one lane, as allocated
    needed_bytes: int  # of all rows' lanes together, if each had its own size
    planned_tokens: int  # of all rows' outputs together, at most
    compiled: bool = False  # settled once, like the rectangle: compiled steps round otherwise

    @property
    def lanes(self) -> int:
        return self.shape.lanes

    @property
    def padding_bytes(self) -> int:
        """What its rectangle has and its rows on average do not need, all lanes together."""
        return round(self.lanes * (self.lane_bytes - self.needed_bytes / self.rows))

    @property
    def cache_bytes(self) -> int:
        return self.lanes * self.lane_bytes

    def with_lanes(self, lanes: int) -> "Group":
        return replace(self, shape=replace(self.shape, lanes=lanes))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def of(cls, plan: dict[str, Any]) -> "Group":
        told = {**plan["shape"], "prompt_slots": tuple(plan["shape"]["prompt_slots"])}
        shape = CacheShape(**{**told, "form": SlotFormat(**told.get("form", {}))})
        return cls(**{**plan, "shape": shape})


def form_groups(
    demands: Iterable[Demand], geometry: Geometry, dtype_bytes: int, order: Order = "longest", first: int = 0
) -> list[tuple[Group, list[Demand]]]:
    """Groups of one lane yet, numbered from `first`, each with its rows in the order they will be run.

    From the largest row down, a row joins while every lane of the rectangle is used to three quarters,
    and RoPE has the same factors for it.
    """

    def size(shape: CacheShape) -> int:
        return shape.cache_bytes(geometry, dtype_bytes)

    def longest_first(demand: Demand) -> tuple[bool, int, int, int]:
        """Slots come in steps: rows of one size may still differ in length."""
        return (
            not demand.shape.beyond,
            -size(demand.shape),
            -demand.prompt_tokens - demand.planned_tokens,
            demand.number,
        )

    by_size = sorted(demands, key=longest_first)
    rectangles: list[tuple[CacheShape, list[Demand]]] = []
    for demand in by_size:
        if rectangles and not demand.alone and not rectangles[-1][1][0].alone:
            shape, rows = rectangles[-1]
            larger = enclosing(shape, demand.shape)
            least = min(size(demand.shape), size(rows[-1].shape))
            same_factors = demand.shape.beyond == shape.beyond
            if same_factors and least >= (1 - MOST_WASTE) * size(larger):
                rectangles[-1] = (larger, [*rows, demand])
                continue
        rectangles.append((demand.shape, [demand]))
    if order == "input":
        rectangles = [(shape, sorted(rows, key=lambda row: row.number)) for shape, rows in rectangles]
        rectangles.sort(key=lambda rectangle: rectangle[1][0].number)
    return [
        (
            Group(
                number=first + index,
                shape=shape,
                rows=len(rows),
                alone=rows[0].alone,
                staging_bytes=max(row.staging_bytes for row in rows),
                lane_bytes=size(shape),
                needed_bytes=sum(size(row.shape) for row in rows),
                planned_tokens=sum(row.planned_tokens for row in rows),
            ),
            rows,
        )
        for index, (shape, rows) in enumerate(rectangles)
    ]


def alike_together(rows: Sequence[Demand]) -> list[Demand]:
    """Rows whose prompts begin alike one after the other, so that one is read and the others copy it.

    The first of them keeps its turn, and what begins like nothing else keeps its order.
    """
    first: dict[int, int] = {}
    for index, row in enumerate(rows):
        for begun in row.begins:
            first.setdefault(begun, index)
    turns = {row.number: (*map(first.__getitem__, row.begins), index) for index, row in enumerate(rows)}
    return sorted(rows, key=lambda row: turns[row.number])


def hashes_of(ids: Sequence[int], ends: Sequence[int]) -> Iterator[int]:
    """Of the ids up to the end of every chunk but the last, which each prompt reads for itself."""
    known = 0
    for start, end in pairwise([0, *ends[:-1]]):
        known = crc32(array("q", ids[start:end]).tobytes(), known)
        yield known


def enclosing(one: CacheShape, other: CacheShape) -> CacheShape:
    """The smallest shape in which both fit."""
    return replace(
        one,
        prompt_slots=tuple(map(max, one.prompt_slots, other.prompt_slots)),
        evictable=max(one.evictable, other.evictable),
        context=max(one.context, other.context),
        ring=max(one.ring, other.ring),
    )
