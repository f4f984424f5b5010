"""One lane of a cache out, as tensors and numbers; and into a cache again, as if it had never left."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from torch import Tensor

from scope_cli.cache.lanes import LaneCount
from scope_cli.errors import ScopeError
from scope_cli.policies.schedule import Schedule

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


EXACT = ("exact.keys", "exact.values", "exact.slots", "exact.bias")
RINGS = ("queries", "query_positions", *EXACT)  # a position lies at its remainder: no other size will do


class OtherShape(ScopeError):
    """A lane's state does not fit the cache; says in words why."""

    def __init__(self, why: str) -> None:
        super().__init__(f"the state does not fit the cache: {why}", "were other settings given?")


def lane_tensors(cache: ScopeCache, lane: int) -> dict[str, Tensor]:
    """Everything a lane's future depends on but its count: views of the cache on a CPU, copies of a GPU's.

    Their sizes are those of the buffers, however much was written.
    """
    return {name: tensor[lane].cpu() for name, tensor in cache.tensors().items()}


def lane_numbers(cache: ScopeCache, lane: int) -> dict[str, Any]:
    """What the host counts of a lane, as JSON takes it."""
    return {"count": asdict(cache.count(lane)), "prompt_slots": list(cache.shape.prompt_slots)}


def put_lane(
    cache: ScopeCache,
    lane: int,
    tensors: Mapping[str, Tensor],
    numbers: Mapping[str, Any],
    schedule: Schedule | None = None,
) -> None:
    """Let a lane go on from a state; it runs from now on. Raises OtherShape and leaves the lane free.

    A cache with room for a longer output takes it as well: slots and lists are filled from their beginnings,
    and what is behind them is free. The numbers may be rounded to another dtype.
    schedule: what limits the lane from now on, where that is not what did before
    """
    count = count_of(numbers)
    slots = tuple(numbers["prompt_slots"])
    if slots != cache.shape.prompt_slots:
        if cache.shape.lanes > 1:
            raise OtherShape(f"slots for {max(slots):,} prompt tokens, not {max(cache.shape.prompt_slots):,}")
        cache.fit_prompt(slots)
    own = cache.tensors()
    if own.keys() != tensors.keys():
        raise OtherShape("other buffers: another model, scorer or slot format")
    for name, tensor in tensors.items():
        there = own[name][lane].shape
        fits = len(there) == tensor.dim() and all(a >= b for a, b in zip(there, tensor.shape, strict=True))
        if not fits or (name.endswith(RINGS) and there != tensor.shape):
            raise OtherShape(f"{name} has the shape {list(tensor.shape)}, not {list(there)}")
    cache.start_prompt(lane, schedule or count.schedule)
    for name, tensor in tensors.items():
        own[name][lane][tuple(slice(size) for size in tensor.shape)] = tensor.to(cache.device)
    count.schedule = schedule or count.schedule
    count.active = True
    cache.lanes[lane] = count
    cache.running[lane] = 1
    cache._set_read_slots()


def count_of(numbers: Mapping[str, Any]) -> LaneCount:
    told = dict(numbers["count"])
    kept = told["kept"]
    return LaneCount(**told | {"schedule": Schedule(**told["schedule"]), "kept": kept and tuple(kept)})
