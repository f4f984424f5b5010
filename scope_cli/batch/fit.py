"""Free memory in, lanes that fit it out: weights + lanes * lane + staging + workspace, all in bytes."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from scope_cli.batch.groups import Demand, Group
from scope_cli.engine.fit import Needs, cache_in_int8, of_weights, what_fits
from scope_cli.errors import ModelError
from scope_cli.models.target import Target
from scope_cli.units import as_bytes

if TYPE_CHECKING:
    from scope_cli.models.model import OpenedModel

MOST_LANES = 32  # by itself no more: what lanes have written is lost when the machine goes
EVENLY = 4  # any number of rows up to it, and multiples of it: no product depends on which row it is


@dataclass(frozen=True)
class Memory:
    """What there is, and what the model takes of it beside the cache: planned, then measured as well."""

    free_bytes: int  # before the weights were read
    weight_bytes: int
    reading_bytes: int = 0  # at most in use while a chunk of a prompt is read, beside weights and cache
    step_bytes: int = 0  # at most in use in one step of one lane
    base_bytes: int = 0  # of the process before the model, where the resident set is what is measured

    @classmethod
    def planned_for(cls, demands: Sequence[Demand], free_bytes: int, weight_bytes: int) -> "Memory":
        """From sizes alone, before any weight is read."""
        return cls(
            free_bytes,
            weight_bytes,
            reading_bytes=max((demand.reading_bytes for demand in demands), default=0),
            step_bytes=max((demand.step_bytes for demand in demands), default=0),
        )

    def at_least(self, planned: "Memory") -> "Memory":
        """As measured, but no less than what was planned: on a few tokens not everything is seen."""
        return replace(
            self,
            reading_bytes=max(self.reading_bytes, planned.reading_bytes),
            step_bytes=max(self.step_bytes, planned.step_bytes),
        )

    def workspace(self, lanes: int) -> int:
        """A chunk is read between two steps, never during one."""
        return max(self.reading_bytes, lanes * self.step_bytes)

    def planned(self, group: Group) -> int:
        """Everything that a group's run takes, without what the process had before."""
        return self.weight_bytes + group.cache_bytes + group.staging_bytes + self.workspace(group.lanes)

    def needs(self, group: Group, target: Target) -> Needs:
        """The same, as a run's account has it."""
        return Needs(
            weights=self.weight_bytes,
            loading=target.loading_bytes,
            cache=group.cache_bytes,
            reading=group.staging_bytes + self.reading_bytes,
            writing=group.staging_bytes + group.lanes * self.step_bytes,
            in_int8=cache_in_int8([group.shape], target),
        )

    def lanes_that_fit(self, group: Group) -> int:
        left = self.free_bytes - self.weight_bytes - group.staging_bytes
        if left < self.reading_bytes:
            return 0
        by_reading = (left - self.reading_bytes) // group.lane_bytes
        return min(by_reading, left // (group.lane_bytes + self.step_bytes))

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def check_weights(opened: "OpenedModel", free_bytes: int) -> None:
    """Raises ModelError where the weights alone do not fit, or not while they are read."""
    weights = of_weights(opened.target)
    if weights.total > free_bytes:
        raise ModelError(
            f"not enough memory: reading the weights of {opened.name} takes {as_bytes(weights.total)}, "
            f"{as_bytes(free_bytes)} are free",
            what_fits(opened.target, weights, 1, free_bytes),
        )


def even(lanes: int) -> int:
    """So many that a text is the same in any of them: with 5 to 7 it may not be (float32, MKL)."""
    return lanes if lanes <= EVENLY else lanes - lanes % EVENLY


def choose_lanes(group: Group, lanes: int | None, memory: Memory, target: Target) -> Group:
    """The group with `lanes`, or with as many as fit, evenly, where it is None; never more than it has rows.

    Raises ModelError where what was asked for, or a single lane, does not fit.
    """
    fit = memory.lanes_that_fit(group)
    wanted = min(lanes or MOST_LANES, 1 if group.alone else group.rows)
    if fit < 1 or (lanes is not None and fit < wanted):
        asked = wanted if lanes else 1
        needed = memory.planned(group.with_lanes(asked))
        other = what_fits(target, memory.needs(group.with_lanes(asked), target), 1, memory.free_bytes)
        raise ModelError(
            f"not enough memory: {asked} lane{'s' * (asked > 1)} of {as_bytes(group.lane_bytes)} take "
            f"{as_bytes(needed)} with the weights ({as_bytes(memory.weight_bytes)}), "
            f"{as_bytes(memory.free_bytes)} are free",
            f"--lanes {fit} fits; {other}" if fit else other,
        )
    return group.with_lanes(wanted if lanes is not None else even(min(wanted, fit)))
