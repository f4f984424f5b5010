"""What a scorer sees of a layer's slots, or of those of several layers at once."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor

Over = Literal["mean", "max"]
Group = Literal["mean", "max", "logit_max"]
SMALLEST = 2**-25  # half a step of `uniform`: keeps logarithms finite


class LaneFacts(NamedTuple):
    """What is known of the lanes at an eviction; each [lanes, 1, 1], int64, on the device."""

    prompt: Tensor  # tokens of the prompt
    written: Tensor  # generated tokens
    recent: Tensor  # of them, the newest that always stay
    leaving: Tensor  # tokens that have to go
    wrote: Tensor  # 1 where the lane has a current token

    @classmethod
    def of(cls, stacked: Tensor) -> LaneFacts:
        """stacked: [5, lanes, 1, 1]"""
        return cls(*stacked.unbind())


class SlotView:
    """A layer's slots at an eviction: the prefix that is in use, in no order.

    Of several layers of one size the lanes follow one another, layer by layer: a scorer computes each lane by
    itself and need not know.

    keys, values: [lanes, kv_heads, slots, head_dim]
    positions: [lanes, kv_heads, slots], -1 where free
    is_held, is_prompt, is_recent, is_candidate: the same shape, bool
    n: [lanes, 1, 1], generated tokens written; now: [lanes, 1, 1], the current token's position
    wrote, is_evicting: [lanes, 1, 1], bool: the lane has a current token; some of its tokens will go
    keep: [lanes, kv_heads, 1], how many of the candidates will stay
    """

    def __init__(
        self,
        *,
        layers: Tensor,
        layer_number: int | None,
        scale: float,
        keys: Callable[[], Tensor],
        values: Callable[[], Tensor],
        products: Callable[[Tensor], Tensor],
        positions: Tensor,
        queries: Tensor,
        query_positions: Tensor,
        seeds: Tensor,
        inv_freq: Tensor | None,
        memos: dict[str, Tensor],
        output_weight: Tensor | None,
        facts: LaneFacts,
        protected: int | None,
        most_candidates: int,
        ago: int = 0,
        told: Tensor | None = None,
    ) -> None:
        """queries: [lanes, heads, ring, head_dim]; query_positions: [lanes, ring], -1 where there is none

        layers: [lanes, 1, 1], the layer of each lane; layer_number: where that is the same for all
        products: of queries, [lanes, kv_heads, many, head_dim], with the keys: [..., many, slots]
        scale: of queries times keys; inv_freq: [rotated / 2], RoPE's, for who undoes it; seeds: [lanes]
        memos: [lanes, kv_heads, slots] each; output_weight: [hidden, heads * head_dim], where it is needed
        protected: prompt tokens that stay whatever happens, None: all; most_candidates: of a head, at most
        ago: show how it was so many tokens ago, if nothing was evicted since
        told: what `attention(window=1)` is, where the step has told
        """
        self.layers, self._layer_number = layers, layer_number
        self._read_keys, self._read_values, self._products = keys, values, products
        self._keys: Tensor | None = None
        self._values: Tensor | None = None
        self.scale, self.positions = scale, positions
        self.queries, self.query_positions = queries, query_positions
        self.seeds, self.inv_freq = seeds, inv_freq
        self._memos, self._output_weight = memos, output_weight
        self._told = told
        self._most_candidates = most_candidates
        self.n, self.now = facts.written - ago, facts.prompt + facts.written - ago - 1
        if ago:
            self.positions = self.positions.masked_fill(self.positions > self.now, -1)
            later = self.query_positions > self.now.view(-1, 1)
            self.query_positions = self.query_positions.masked_fill(later, -1)
        self.wrote, self.is_evicting = facts.wrote > 0, facts.leaving > 0
        self.is_held = self.positions >= 0
        self.is_prompt = self.is_held & (self.positions < facts.prompt)
        self.is_recent = self.is_held & (self.positions > self.now - facts.recent)
        stays = self.is_prompt if protected is None else self.is_prompt & (self.positions < protected)
        self.is_candidate = self.is_held & ~self.is_recent & ~stays
        self.keep = self.is_candidate.sum(-1, keepdim=True) - facts.leaving

    @property
    def keys(self) -> Tensor:
        """[lanes, kv_heads, slots, head_dim], unpacked when somebody asks"""
        if self._keys is None:
            self._keys = self._read_keys()
        return self._keys

    @keys.setter
    def keys(self, keys: Tensor) -> None:
        self._keys = keys

    @property
    def values(self) -> Tensor:
        """[lanes, kv_heads, slots, head_dim]"""
        if self._values is None:
            self._values = self._read_values()
        return self._values

    @values.setter
    def values(self, values: Tensor) -> None:
        self._values = values

    @property
    def layer(self) -> int:
        """Its number, for a scorer that sees one layer at a time (not `Scorer.together`)."""
        assert self._layer_number is not None, "several layers have several numbers"
        return self._layer_number

    # Attention, computed again from the remembered queries

    def logits(self, window: int) -> Tensor:
        """Scaled products of the newest `window` queries with every held key, in at least float32.

        [lanes, kv_heads, group, window, slots]; -inf where a slot is free or newer than the query
        """
        import torch

        queries, positions = self.newest_queries(window)
        rows = queries.flatten(2, 3)
        if self._keys is None:  # a layer at a time, not turned back
            products = self._products(rows).mul_(self.scale)
        else:
            products = (rows @ self.precise(self.keys).transpose(2, 3)).mul_(self.scale)
        slots = self.positions.unsqueeze(2).unsqueeze(2)
        hidden = (slots < 0) | (slots > positions.view(-1, 1, 1, window, 1))
        return products.unflatten(2, (-1, window)).masked_fill_(hidden, -torch.inf)

    def newest_queries(self, window: int) -> tuple[Tensor, Tensor]:
        """The newest queries, in any order, and their positions (-1: there were not that many yet).

        [lanes, kv_heads, group, window, head_dim] in at least float32, [lanes, window]
        """
        positions, at = self.query_positions.topk(window, -1)
        lanes, heads, _ring, head_dim = self.queries.shape
        queries = self.queries.gather(2, at.view(lanes, 1, window, 1).expand(-1, heads, -1, head_dim))
        return self.precise(queries).unflatten(1, (self.positions.shape[1], -1)), positions

    def attention(
        self,
        window: int = 1,
        queries: Over = "mean",
        group: Group = "mean",
        among: Tensor | None = None,
    ) -> Tensor:
        """Attention probabilities over everything held, first over the group, then over the newest queries.

        `logit_max` takes the group's maximum before the softmax (R-KV). `among` [lanes, kv_heads, slots]
        limits the softmax to some of the slots. A query that sees nothing does not count.
        [lanes, kv_heads, slots]
        """
        import torch

        if self._told is not None and (window, queries, group, among) == (1, "mean", "mean", None):
            return self._told
        logits = self.logits(window)
        if among is not None:
            logits.masked_fill_(~among.unsqueeze(2).unsqueeze(2), -torch.inf)
        if group == "logit_max":
            logits = logits.amax(2, keepdim=True)
        blind = logits.amax(-1, keepdim=True) == -torch.inf  # too early, or all it saw has been evicted
        rows = logits.masked_fill_(blind, 0).softmax(-1).masked_fill_(blind, 0)
        per_query = rows.amax(2) if group == "max" else rows.mean(2)  # [lanes, kv_heads, window, slots]
        if queries == "max":
            return per_query.amax(2)
        return per_query.sum(2) / (~blind[:, :, 0]).sum(2).clamp(min=1)

    def precise(self, x: Tensor) -> Tensor:
        """At least float32."""
        import torch

        return x.to(torch.promote_types(x.dtype, torch.float32))

    # Slots in the order of the text

    def in_order(self, x: Tensor) -> Tensor:
        """[lanes, kv_heads, slots, ...] sorted by position; free slots come first."""
        return _take(x, self._order)

    def back(self, x: Tensor) -> Tensor:
        """What `in_order` gave, or something computed from it, in the order of the slots."""
        return _take(x, self._order.argsort(-1))

    @property
    def _order(self) -> Tensor:
        return self.positions.argsort(-1)

    def pool(self, x: Tensor, kernel: int, how: Over) -> Tensor:
        """Mean or maximum over each held token's `kernel` neighbours in the text, those held: shape of x."""
        import torch

        if kernel == 1:
            return x
        held = self.in_order(self.is_held)
        x = self.in_order(x)
        if how == "max":
            low = x.masked_fill(~held, -torch.inf)
            pooled = torch.nn.functional.max_pool1d(low, kernel, 1, kernel // 2)
        else:
            pad, ones = kernel // 2, held.to(x.dtype)
            total = torch.nn.functional.avg_pool1d(x.masked_fill(~held, 0), kernel, 1, pad)
            pooled = total / torch.nn.functional.avg_pool1d(ones, kernel, 1, pad).clamp(min=1e-9)
        return self.back(pooled[..., : x.shape[-1]].masked_fill(~held, 0))

    # The candidates alone: what compares them with one another need not pay for a long prompt

    def candidates(self, x: Tensor) -> Tensor:
        """The candidates' part of x in the order of the text, [lanes, kv_heads, candidates, ...].

        `candidates` is how many there can be at most; where a head has fewer, its row ends in other slots.
        """
        return _take(x, self._candidates_first)

    def from_candidates(self, x: Tensor) -> Tensor:
        """[lanes, kv_heads, candidates] back to [lanes, kv_heads, slots], 0 for what is no candidate."""
        slots = x.new_zeros(self.positions.shape).scatter(2, self._candidates_first, x)
        return slots.masked_fill(~self.is_candidate, 0)

    @property
    def _candidates_first(self) -> Tensor:
        import torch

        last = torch.iinfo(self.positions.dtype).max
        order = self.positions.masked_fill(~self.is_candidate, last).argsort(-1)
        return order[:, :, : self._most_candidates]

    # Choosing

    def rank(self, x: Tensor, among: Tensor | None = None) -> Tensor:
        """Each candidate's place among its head's candidates, 0 the highest, the newer first among equals.

        [lanes, kv_heads, slots]; what is no candidate comes after all of them. `among`, bool and of that
        shape: the slots to rank, in place of the candidates.
        """
        import torch

        ranked = self.is_candidate if among is None else among
        newest_first = self.positions.argsort(-1, descending=True)
        by_age = x.masked_fill(~ranked, -torch.inf).gather(2, newest_first)
        order = newest_first.gather(2, by_age.sort(dim=-1, descending=True, stable=True).indices)
        return order.argsort(-1)

    def reserve(self, scores: Tensor, by: Tensor, share: float) -> Tensor:
        """Lift the top `share` of what will be kept, ranked by `by`, above every other score."""
        import torch

        chosen = self.is_candidate & (self.rank(by) < (self.keep * share).floor())
        held = scores.masked_fill(~self.is_held, 0)
        lift = held.amax(-1, keepdim=True) - held.amin(-1, keepdim=True) + 1
        return torch.where(chosen, scores + lift, scores)

    def value_range(self) -> Tensor:
        """Largest minus smallest channel of each value (VaSE, arXiv 2606.03928): [lanes, kv_heads, slots]."""
        values = self.precise(self.values)
        return values.amax(-1) - values.amin(-1)

    # What lies beside the slots

    def memo(self, name: str) -> Tensor:
        """What the scorer remembers per slot, [lanes, kv_heads, slots] float32, to write in place."""
        return self._memos[name]

    @property
    def output_weight(self) -> Tensor:
        """The layer's output projection by head, [heads, head_dim, hidden]."""
        assert self._output_weight is not None, "a cache whose policy weighs is told the weights"
        return self._output_weight.T.unflatten(0, (-1, self.queries.shape[-1]))

    # Chance

    def uniform(self, salt: int = 0) -> Tensor:
        """Random numbers in [0, 1) that depend on lane seed, layer, KV head, position and n alone.

        [lanes, kv_heads, slots], float32. A hash (the finaliser of SplitMix64) in place of a generator: a
        lane draws the same whatever the others hold, and a compiled step can draw it. `salt`: another draw.
        """
        return uniform(self.head_seeds(salt) + self.positions.long() + 1)

    def head_seeds(self, salt: int = 0) -> Tensor:
        """A hash of lane seed, layer, KV head, n and salt, [lanes, kv_heads, 1]."""
        import torch

        heads = torch.arange(self.positions.shape[1], device=self.positions.device).view(1, -1, 1)
        mixed = self.seeds.view(-1, 1, 1) + salt
        for part in (self.layers, heads, self.n):
            mixed = _splitmix(mixed + part + 1)
        return mixed


def uniform(x: Tensor) -> Tensor:
    """Hash int64 into [0, 1), float32."""
    return ((_splitmix(x) >> 40) & 0xFFFFFF).float() / 2**24


def _splitmix(x: Tensor) -> Tensor:
    """SplitMix64's output function on wrapping int64 (Steele, Lea and Flood 2014)."""
    x = x * -0x61C8864680B583EB  # the golden gamma, 0x9E3779B97F4A7C15
    x = (x ^ ((x >> 30) & (2**34 - 1))) * -0x40A7B892E31B1A47  # 0xBF58476D1CE4E5B9
    x = (x ^ ((x >> 27) & (2**37 - 1))) * -0x6B2FB644ECCEEE15  # 0x94D049BB133111EB
    return x ^ ((x >> 31) & (2**33 - 1))


def _take(x: Tensor, order: Tensor) -> Tensor:
    """Gather along the slots, whatever axes follow."""
    index = order.view(*order.shape, *[1] * (x.dim() - 3)).expand(*order.shape, *x.shape[3:])
    return x.gather(2, index)
