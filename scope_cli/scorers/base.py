"""What a scorer sees of a layer's slots, and what it promises.

A scorer is a frozen dataclass: its fields are its options in YAML, its docstring is its line in
`scope scorers`. It ranks the slots of every KV head by itself, leaves choosing, freeing and counting to the
cache, and holds no state.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor

from scope_cli import plugins

if TYPE_CHECKING:
    from scope_cli.cache import PolicyLayer, ScopeCache


@runtime_checkable
class Scorer(Protocol):
    """Ranks slots. `window`: how many of the newest queries it looks at (1: the current one)."""

    window: ClassVar[int]

    def score(self, view: "SlotView") -> Tensor:
        """[lanes, kv_heads, slots], finite where a token is held, at least float32; higher is kept."""


def scorer(name: str) -> Callable[[type], type]:
    """Register a scorer under the name of its file."""
    return plugins.register("scorers", name)


class SlotView:
    """One layer's slots at an eviction: the prefix that is in use, in no order.

    keys, values: [lanes, kv_heads, slots, head_dim]; positions: [lanes, kv_heads, slots], -1 where free;
    is_prompt, is_recent, is_candidate: the same shape, bool; n: [lanes, 1, 1], generated tokens written
    """

    def __init__(self, cache: "ScopeCache", layer: "PolicyLayer") -> None:
        used = layer.read_slots
        self.layer = layer.index
        self.scale = layer.scale
        self.keys, self.values = layer.keys[:, :, :used], layer.values[:, :, :used]
        self.positions = layer.positions[:, :, :used]
        self.queries, self.query_positions = layer.queries, cache.query_positions
        self.seeds = cache.seeds
        device = self.positions.device
        lanes = [
            (count.prompt, count.written, count.schedule.recent) if count else (0, 0, 0)
            for count in cache.lanes
        ]
        prompt, n, recent = torch.tensor(lanes, device=device).T.reshape(3, -1, 1, 1)
        self.n = n
        self.is_prompt = (self.positions >= 0) & (self.positions < prompt)
        self.is_recent = self.positions >= prompt + n - recent
        protected = (
            self.is_prompt if cache.protect_prompt else self.is_prompt & (self.positions < cache.sinks)
        )
        self.is_candidate = (self.positions >= 0) & ~self.is_recent & ~protected

    def logits(self, window: int) -> Tensor:
        """Scaled products of the newest `window` queries with every held key, in at least float32.

        [lanes, kv_heads, group, window, slots]; -inf where a slot is free or newer than the query
        """
        precise = torch.promote_types(self.keys.dtype, torch.float32)
        newest, at = self.query_positions.topk(window, -1)  # [lanes, window], in any order
        lanes, heads, _ring, head_dim = self.queries.shape
        queries = self.queries.gather(2, at.view(lanes, 1, window, 1).expand(-1, heads, -1, head_dim))
        grouped = queries.view(lanes, self.keys.shape[1], -1, head_dim).to(precise)
        products = (grouped @ self.keys.to(precise).transpose(2, 3) * self.scale).unflatten(2, (-1, window))
        slots = self.positions.unsqueeze(2).unsqueeze(2)
        return products.masked_fill((slots < 0) | (slots > newest.view(lanes, 1, 1, window, 1)), -torch.inf)

    def attention(self, window: int) -> Tensor:
        """Attention probabilities over everything held, averaged over the newest queries and the group.

        [lanes, kv_heads, slots]
        """
        return self.logits(window).softmax(-1).mean((2, 3))

    def uniform(self) -> Tensor:
        """Random numbers in [0, 1) that depend on lane seed, layer, KV head, position and n alone.

        [lanes, kv_heads, slots], float32. A hash (the finaliser of SplitMix64) in place of a generator: a
        lane draws the same whatever the others hold, and a compiled step can draw it.
        """
        heads = torch.arange(self.positions.shape[1], device=self.positions.device).view(1, -1, 1)
        mixed = self.seeds.view(-1, 1, 1)
        for part in (torch.full_like(heads, self.layer), heads, self.n, self.positions.long()):
            mixed = _splitmix(mixed + part + 1)
        return ((mixed >> 40) & 0xFFFFFF).float() / 2**24


def _splitmix(x: Tensor) -> Tensor:
    """SplitMix64's output function on wrapping int64 (Steele, Lea and Flood 2014)."""
    x = x * -0x61C8864680B583EB  # the golden gamma, 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & (2**33 - 1))
