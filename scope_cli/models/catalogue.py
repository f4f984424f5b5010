"""Short names of open models that can be fetched from the hub, and what each asks of a machine. No torch.

What stands here is read off the models' own config.json; that a name stands here says that its family can be
run, not that anybody has judged its texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Literal

from scope_cli.machine import memory, nvidia
from scope_cli.models.random_weights import CONFIGS
from scope_cli.models.shapes import ModelShape, shape_of

Fits = Literal["yes", "packed", "no"]
PROMPT, BUDGET = (
    1000,
    2048,
)  # tokens that a cache has to hold, to be called one that fits: the defaults' order
PACKED = "4bit"  # on a GPU; on a CPU the plain weights are in memory before they are packed
READABLE_ON_A_CPU = 2 * 10**9  # parameters: more are waited for


@dataclass(frozen=True)
class Known:
    """A model by its short name."""

    name: str
    hub: str
    licence: str
    gated: bool = False  # the hub asks that its terms are accepted first

    @property
    def shape(self) -> ModelShape:
        return shape_of(CONFIGS[self.name], self.name)

    @property
    def parameters(self) -> int:
        return sum(prod(shape) for shape in self.shape.weights.values())

    @property
    def weight_bytes(self) -> int:
        """As they lie on the hub, in bfloat16."""
        return 2 * self.parameters

    @property
    def context(self) -> int:
        return self.shape.geometry.context

    def cache_bytes(self, tokens: int, dtype_bytes: int = 2) -> int:
        """Keys and values of so many tokens; sliding-window layers hold their window at most."""
        return sum(
            layer.slot_bytes(dtype_bytes) * (min(tokens, layer.window) if layer.kind == "window" else tokens)
            for layer in self.shape.geometry.layers
        )

    def needs(self, device: str, load_in: str | None = None) -> int:
        """Bytes of weights and cache of a run of the default profile."""
        dtype, dtype_bytes = ("float32", 4) if device == "cpu" else ("bfloat16", 2)
        return self.shape.weight_bytes(dtype, load_in) + self.cache_bytes(PROMPT + BUDGET, dtype_bytes)

    def fits(self, device: str, free_bytes: int) -> Fits:
        if self.needs(device) <= free_bytes:
            return "yes"
        return "packed" if device == "cuda" and self.needs(device, PACKED) <= free_bytes else "no"


KNOWN = {
    known.name: known
    for known in (
        Known("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Apache-2.0"),
        Known("qwen3-1.7b", "Qwen/Qwen3-1.7B", "Apache-2.0"),
        Known("qwen3-4b", "Qwen/Qwen3-4B-Instruct-2507", "Apache-2.0"),
        Known("mistral-7b", "mistralai/Mistral-7B-Instruct-v0.3", "Apache-2.0"),
        Known("llama-3.1-8b", "meta-llama/Llama-3.1-8B-Instruct", "Llama 3.1", gated=True),
        Known("qwen3-8b", "Qwen/Qwen3-8B", "Apache-2.0"),
        Known("gemma-3-12b", "google/gemma-3-12b-it", "Gemma", gated=True),
    )
}


def hub_name(name: str) -> str:
    """The hub's name for a short one; every other name is its own."""
    return KNOWN[name].hub if name in KNOWN else name


def here() -> tuple[str, int]:
    """(device, bytes free on it) that a run on this machine would take."""
    if gpus := nvidia.free_bytes():
        return "cuda", gpus[0]
    return "cpu", memory.free_without_torch("cpu")


def next_to_take() -> Known | None:
    """The largest that fits this machine plainly; on a CPU, of those that are not waited for."""
    device, free = here()
    most = READABLE_ON_A_CPU if device == "cpu" else float("inf")
    fitting = [one for one in KNOWN.values() if one.fits(device, free) == "yes" and one.parameters <= most]
    return max(fitting, key=lambda one: one.parameters, default=None)
