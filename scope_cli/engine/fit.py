"""Does it fit? One account of a run's bytes, and one sentence where they are not there. No torch.

`generate`, `batch`, `bench` and `profile` ask here, so that what one of them plans another can run.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from scope_cli.cache.shape import CacheShape
from scope_cli.engine.plan import LanePlan, shared_shape
from scope_cli.engine.workspace import workspace
from scope_cli.errors import ModelError
from scope_cli.formats.base import SHORT
from scope_cli.models.target import Target
from scope_cli.units import as_bytes

INT8 = SHORT["int8"]


@dataclass(frozen=True)
class Needs:
    """Bytes of one run, by what they are for."""

    weights: int
    loading: int  # while the weights are read, where that is more
    cache: int  # all lanes
    reading: int  # beside both while a prompt is read: the buffers it is staged in, and what a chunk computes
    writing: int  # beside both in a step: logits, scores of an eviction
    in_int8: int | None = None  # the cache, had it int8 slots; None where its slots are packed, or cannot be

    @property
    def workspace(self) -> int:
        """A chunk is read between two steps, never during one."""
        return max(self.reading, self.writing)

    @property
    def total(self) -> int:
        """What has to be free in a process that has its libraries loaded."""
        return max(self.loading, self.weights + self.cache + self.workspace)


def needs(target: Target, plans: Sequence[LanePlan], lanes: int, chunk: int) -> Needs:
    """What prompts take that share `lanes`; chunk: `prefill.chunk`.

    Raises UsageError where they cannot share them.
    """
    different = list(dict.fromkeys(plans))
    geometry, dtype_bytes = target.shape.geometry, target.dtype_bytes
    shape = shared_shape(different, lanes)
    if any(plan.prompt.late for plan in different):  # one after the other, each in buffers of its own size
        shapes = [plan.shape for plan in different]
    else:
        shapes = [shape] * len(different)
    works = [
        workspace(target, replace(plan, shape=shape), chunk)
        for plan, shape in zip(different, shapes, strict=True)
    ]

    return Needs(
        weights=target.weight_bytes,
        loading=target.loading_bytes,
        cache=max(shape.cache_bytes(geometry, dtype_bytes) for shape in shapes),
        reading=max(work.prefill for work in works),
        writing=max(work.decode for work in works),
        in_int8=cache_in_int8(shapes, target),
    )


def cache_in_int8(shapes: Sequence[CacheShape], target: Target) -> int | None:
    """Bytes of the largest of these caches, had it int8 slots; None where slots are packed, or cannot be."""
    geometry = target.shape.geometry
    if any(shape.form.packs for shape in shapes) or any(
        INT8.problem(one.head_dim) for one in geometry.layers
    ):
        return None
    return max(replace(shape, form=INT8).cache_bytes(geometry, target.dtype_bytes) for shape in shapes)


def of_weights(target: Target) -> Needs:
    """What a model takes that does nothing yet."""
    return Needs(target.weight_bytes, target.loading_bytes, cache=0, reading=0, writing=0)


def check(target: Target, run: Needs, lanes: int, free: int, device: str) -> None:
    """Raises ModelError where a run needs more than is free on the device."""
    if run.total <= free:
        return
    loading = f", {as_bytes(run.loading)} while it is loaded" if run.loading else ""
    raise ModelError(
        f"not enough memory: {target.shape.name} needs {as_bytes(run.total)} "
        f"(weights {as_bytes(run.weights)}, cache {as_bytes(run.cache)}, "
        f"workspace {as_bytes(run.workspace)}{loading}), {device} has {as_bytes(free)} free",
        what_fits(target, run, lanes, free),
    )


def what_fits(target: Target, run: Needs, lanes: int, free: int) -> str:
    """The fewest changes after which the run would fit, as far as is known without planning it anew."""
    changes = list(_changes(target, run, lanes))
    for count in range(1, len(changes) + 1):
        for some in combinations(changes, count):
            needed = replace(run, **{part: size for _, part, size in some})
            if needed.total <= free:
                words = " and ".join(option for option, _, _ in some)
                return f"with {words} it takes about {as_bytes(needed.total)}"
    return "try a smaller --budget, --max-new-tokens or model" if run.cache else "try a smaller model"


def _changes(target: Target, run: Needs, lanes: int) -> Iterator[tuple[str, str, int]]:
    """(an option, the part of the account that it makes smaller, what that would be)"""
    if run.in_int8 is not None and run.in_int8 < run.cache:
        yield "--kv int8", "cache", run.in_int8
    elif lanes > 1:
        yield f"--lanes {lanes // 2}", "cache", run.cache * (lanes // 2) // lanes
    if target.load_in is None and not run.loading:
        form = "int4" if target.device == "cpu" else "4bit"
        yield f"--load-in {form}", "weights", target.shape.weight_bytes(target.dtype, form)
