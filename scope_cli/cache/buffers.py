"""The layers of a cache: made, made anew for another prompt, read as far as they are used."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor

from scope_cli.cache.lanes import LaneCount
from scope_cli.cache.layers import LayerAttention, SlotLayer
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.cache.policy_slots import PolicySlots, Together
from scope_cli.cache.readings import Readings
from scope_cli.cache.shape import STEP, CacheShape
from scope_cli.cache.window_layer import WindowLayer
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.policies.policy import Policy

if TYPE_CHECKING:
    from scope_cli.cache.cache import ScopeCache

BLOCK = 512  # keys that SDPA looks at together on a CPU
ALL = 2**40  # slots: more than there are


class Buffers:
    """What of a ScopeCache is its layers.

    Policy layers of one size share the tensors beside their keys and values, so that an eviction is one batch
    of operations for several of them (`PolicySlots`); keys and values are each layer's own.
    """

    geometry: Geometry
    shape: CacheShape
    policy: Policy
    attention: Mapping[int, LayerAttention]
    dtype: torch.dtype
    device: torch.device
    lanes: list[LaneCount | None]
    layers: list[SlotLayer]
    together: list[Together]  # policy layers whose slots are looked at at once
    space: Tensor | None  # [lanes, numbers], where packed slots are unpacked, one layer after the other
    fitted: int  # how often the policy layers got other buffers
    tells: bool  # a step may tell the scorer its attention
    readings: Readings

    def make_layers(self) -> None:
        """The layers that there are not yet, and the space."""
        cache = cast("ScopeCache", self)
        windows = {layer.index: layer for layer in self.layers if isinstance(layer, WindowLayer)}
        made: dict[int, SlotLayer] = {}
        sizes: dict[tuple[LayerGeometry, int, float | None], list[int]] = {}
        for index, geometry in enumerate(self.geometry.layers):
            if geometry.kind == "window":
                made[index] = windows.get(index) or WindowLayer(cache, index, geometry)
            else:
                scale = self.attention[index].scale if index in self.attention else None
                sizes.setdefault((geometry, self.shape.prompt_slots[index], scale), []).append(index)
        self.together = []
        for (geometry, *_), indices in sizes.items():
            slots, lanes = PolicySlots.of(cache, indices), self.shape.lanes
            layers = [
                PolicyLayer(cache, index, geometry, slots.part(slice(nth * lanes, (nth + 1) * lanes)))
                for nth, index in enumerate(indices)
            ]
            made |= {layer.index: layer for layer in layers}
            step = self.shape.looked_at_once(indices[0], geometry) if self.policy.together else 1
            for first in range(0, len(layers), step):
                rows = slice(first * lanes, (first + step) * lanes)
                self.together.append(Together(cache, layers[first : first + step], slots.part(rows)))
        self.layers = [made[index] for index in range(len(made))]
        size = self.shape.space(self.geometry)
        self.space = (
            torch.empty(self.shape.lanes, size, dtype=self.dtype, device=self.device) if size else None
        )
        self.__dict__.pop("alike", None)

    def space_of(self, lane: int) -> Tensor | None:
        return None if self.space is None else self.space[lane : lane + 1]

    @property
    def policy_layers(self) -> list[PolicyLayer]:
        return [layer for layer in self.layers if isinstance(layer, PolicyLayer)]

    def fit_prompt(self, prompt_slots: tuple[int, ...]) -> None:
        """Make the policy layers anew, where a prompt that was read turns out to need other sizes."""
        if prompt_slots == self.shape.prompt_slots:
            return
        assert self.shape.lanes == 1, "lanes share their sizes"
        self.shape = replace(self.shape, prompt_slots=prompt_slots)
        queries = {layer.index: layer.queries for layer in self.policy_layers}
        self.layers = [layer for layer in self.layers if isinstance(layer, WindowLayer)]
        self.make_layers()
        for layer in self.policy_layers:
            layer.queries.copy_(queries[layer.index])
            layer.reset(0)
        self.fitted += 1
        self.readings = Readings(cast("ScopeCache", self))

    def make_room(self, prompt_slots: tuple[int, ...]) -> None:
        """At least so many slots for the next prompt."""
        if any(there < needed for there, needed in zip(self.shape.prompt_slots, prompt_slots, strict=True)):
            self.fit_prompt(prompt_slots)

    # What a step reads

    def set_read_slots(self) -> None:
        for layers in self.alike:
            used, before = self.used_slots(layers[0]), layers[0].read_slots
            layers[0].set_read_slots(used)
            if layers[0].read_slots != before:
                for layer in layers[1:]:
                    layer.set_read_slots(used)

    @property
    def read_step(self) -> int:
        """A step reads the used slots, rounded up to a multiple of this.

        How many are used depends on all lanes, and what one of them computes must not: a block more of masked
        keys adds exact zeros to attention, a part of a block may round the whole block otherwise. On a GPU
        the number of slots decides how they are divided between its units.
        """
        if self.shape.lanes == 1:
            return STEP
        return BLOCK if self.device.type == "cpu" else ALL

    @cached_property
    def alike(self) -> list[list[SlotLayer]]:
        """Layers of one size, which fill at one pace."""
        groups: dict[tuple[type, int], list[SlotLayer]] = {}
        for layer in self.layers:
            groups.setdefault((type(layer), layer.most_held), []).append(layer)
        return list(groups.values())

    def used_slots(self, layer: SlotLayer) -> int:
        """One more than the highest slot that any lane has ever filled, the token being written included."""
        counts = [count for count in self.lanes if count is not None]
        if isinstance(layer, WindowLayer):
            seen = max((count.prompt + count.written + 1 for count in counts), default=0)
            return min(layer.most_held, seen)
        taken = max((max(count.most_held, count.held + 1) for count in counts), default=0)
        return min(layer.most_held, taken + self.shape.prompt_slots[layer.index])

    def tensors(self) -> dict[str, Tensor]:
        """The whole state, flat: with the lanes' counts, all that a lane's future depends on."""
        own = {
            name: getattr(self, name)
            for name in ("next_position", "held", "running", "seeds", "query_positions")
        }
        for layer in self.layers:
            own |= {f"layers.{layer.index}.{name}": tensor for name, tensor in layer.tensors().items()}
        return own
