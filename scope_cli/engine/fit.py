"""Does it fit? One account of a run's bytes, and one sentence where they are not there. No torch.

`generate`, `batch`, `bench` and `profile` ask here, so that what one of them plans another can run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from scope_cli.engine.plan import LanePlan, shared_shape
from scope_cli.engine.workspace import workspace
from scope_cli.errors import ModelError
from scope_cli.models.target import Target
from scope_cli.units import as_bytes


@dataclass(frozen=True)
class Needs:
    """Bytes of one run, by what they are for."""

    weights: int
    loading: int  # while the weights are read, where that is more
    cache: int  # all lanes
    reading: int  # beside both while a prompt is read: the buffers it is staged in, and what a chunk computes
    writing: int  # beside both in a step: logits, scores of an eviction

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
    )


def check(target: Target, run: Needs, lanes: int, free: int, device: str) -> None:
    """Raises ModelError where a run needs more than is free on the device."""
    if run.total <= free:
        return
    cheaper = "a smaller --budget or --max-new-tokens"
    if max(run.weights, run.loading) > run.cache + run.workspace:
        cheaper = "--load-in 4bit"
    elif lanes > 1:
        cheaper = f"--lanes {lanes // 2}"
    loading = f", {as_bytes(run.loading)} while it is loaded" if run.loading else ""
    raise ModelError(
        f"not enough memory: {target.shape.name} needs {as_bytes(run.total)} "
        f"(weights {as_bytes(run.weights)}, cache {as_bytes(run.cache)}, "
        f"workspace {as_bytes(run.workspace)}{loading}), {device} has {as_bytes(free)} free",
        f"try {cheaper}, or a smaller model",
    )
