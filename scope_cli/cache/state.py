"""One lane of a cache out, as tensors and numbers; and into a cache again, as if it had never left.

And from one lane into another, what two prompts have in common.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isclose
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from scope_cli.cache.lanes import LaneCount
from scope_cli.cache.window_layer import WindowLayer
from scope_cli.errors import ScopeError
from scope_cli.policies.schedule import Schedule

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache


EXACT = ("exact.keys", "exact.values", "exact.slots", "exact.bias")
RINGS = ("queries", "query_positions", *EXACT)  # a position lies at its remainder: no other size will do


class OtherShape(ScopeError):
    """A lane's state does not fit the cache; says in words why."""

    def __init__(self, why: str, hint: str = "were other settings given?") -> None:
        super().__init__(f"the state does not fit the cache: {why}", hint)


def lane_tensors(cache: ScopeCache, lane: int) -> dict[str, Tensor]:
    """Everything a lane's future depends on but its count: views of the cache on a CPU, copies of a GPU's.

    Their sizes are those of the buffers, however much was written.
    """
    return {name: tensor[lane].cpu() for name, tensor in cache.tensors().items()}


def lane_numbers(cache: ScopeCache, lane: int) -> dict[str, Any]:
    """What the host counts of a lane, and what its slots were filled for, as JSON takes it."""
    return {
        "count": asdict(cache.count(lane)),
        "prompt_slots": list(cache.shape.prompt_slots),
        "protects_prompt": cache.policy.protect_prompt,
        "turning": _turning(cache),
    }


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
    _check_filled_for(cache, numbers)
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
    cache.set_read_slots()


def _check_filled_for(cache: ScopeCache, numbers: Mapping[str, Any]) -> None:
    """Slots of the same sizes may have been filled for another run. Raises OtherShape."""
    protects = cache.policy.protect_prompt
    if numbers.get("protects_prompt", protects) != protects:  # states of older builds do not say
        raise OtherShape(
            f"decode.protect_prompt is {str(protects).lower()}, and was not when its prompt was read",
            f"--set decode.protect_prompt={str(not protects).lower()}, or read it anew",
        )
    now, then = _turning(cache), numbers.get("turning")
    if now is not None and then is not None and not isclose(now, then, rel_tol=1e-4):
        raise OtherShape(
            "its keys have RoPE's factors for a text of another length than is planned now",
            "that is settled when a prompt is read: --context N says there how long its text may become",
        )


def _turning(cache: ScopeCache) -> float | None:
    """What tells sets of RoPE's factors apart, and roundings not; None where nothing turns."""
    return None if cache.inv_freq is None else float(cache.inv_freq.float().sum())


def keeps_prompt(cache: ScopeCache, lane: int, tokens: int) -> bool:
    """Do the first tokens of a lane's prompt lie in its slots as they were read?

    Nothing was left out or evicted, no sliding window has come around, and the buffers are the same.
    """
    count = cache.count(lane)
    seen = count.prompt + count.written
    windows = [layer.most_held for layer in cache.layers if isinstance(layer, WindowLayer)]
    whole = count.kept is None and cache.policy.protect_prompt and not cache.fitted
    return whole and tokens <= count.prompt and seen <= min(windows, default=seen)


def copy_beginning(cache: ScopeCache, source: int, lane: int, tokens: int) -> None:
    """Let a lane that is empty begin with so many tokens of another's prompt, or of its own one before.

    Only what `keeps_prompt`. Queries are not copied.
    """
    count, first = cache.count(lane), slice(tokens)
    for layer in cache.layers:
        if source != lane:
            layer.store.set((lane, slice(None), first), layer.store.get((source, slice(None), first)))
        layer.positions[lane, :, first] = torch.arange(tokens, dtype=torch.int32, device=cache.device)
        layer.bias[lane, :, :, first] = 0
    count.prompt = tokens
    copied = (cache.readings.held_bytes(count) + cache.readings.window_bytes(tokens)) * (source != lane)
    count.moved_bytes += copied
    count.reference_moved_bytes += copied


def count_of(numbers: Mapping[str, Any]) -> LaneCount:
    told = dict(numbers["count"])
    kept = told["kept"]
    return LaneCount(**told | {"schedule": Schedule(**told["schedule"]), "kept": kept and tuple(kept)})
