"""Lanes written token by token, and one KV head of a view as plain dictionaries to check formulas with."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache as once
from math import exp

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.plan import plan_run, shared_shape
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import policy_of
from scope_cli.models.architecture import geometry_of
from scope_cli.models.attention import attention_of
from scope_cli.models.skeleton import rope_frequencies
from scope_cli.policies.view import SlotView
from scope_cli.settings.load import LoadedProfile
from tests.helpers.caches import finish
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_model

SMALL = {"budget": 20, "recent": 4, "interval": 6}


@dataclass(frozen=True)
class LaneOf:
    """What a lane reads and writes."""

    prompt: int = 30
    seed: int = 0
    text: int = 0  # another number, another text
    interval: int | None = None  # where it differs from the profile's


model_of = once(tiny_model)


@torch.no_grad()
def written(
    scorer,
    tokens=60,
    lanes=(LaneOf(),),
    *,
    family="llama",
    dtype=torch.float64,
    ring=0,
    chunk=512,
    watch=None,
    **decode,
) -> Iterator[tuple[ScopeCache, torch.Tensor]]:
    """Write random tokens into as many lanes, one of each per step; the cache and [lanes, vocab] logits.

    watch: called with every view that the scorer observed
    """
    model = model_of(family, dtype)
    settings = {"scorer": scorer, **SMALL, **decode}
    profile = profile_of({"decode": settings, "sampling": {"max_new_tokens": tokens + 1}})
    policy = policy_of(profile.decode)
    plan = plan_run(
        LoadedProfile(profile, "test", frozenset()),
        geometry_of(model.config),
        max(lane.prompt for lane in lanes),
        ring=max(ring, policy.scorer.ring),
        memos=len(policy.scorer.memos),
    )
    shape = shared_shape([plan], len(lanes))
    if watch:
        policy = replace(policy, scorer=watched(policy.scorer, watch))
    inv_freq = rope_frequencies(model)
    geometry = geometry_of(model.config)
    told = attention_of(model, geometry, policy.weigh is not None)
    cache = ScopeCache(geometry, shape, policy, inv_freq=inv_freq, attention=told, dtype=dtype)
    texts = []
    for index, lane in enumerate(lanes):
        chance = torch.Generator().manual_seed(lane.text)
        text = torch.randint(0, 256, (lane.prompt + tokens,), generator=chance)
        schedule = replace(plan.schedule, interval=lane.interval or plan.schedule.interval)
        prompt = text[None, : lane.prompt]
        finish(read_prompt(model, cache, prompt, schedule, lane=index, seed=lane.seed, chunk=chunk))
        texts.append(text[lane.prompt :])
    for ids in torch.stack(texts, 1):
        logits = model(
            input_ids=ids[:, None],
            position_ids=cache.next_position[:, None],
            use_cache=False,
            scope_cache=cache,
        ).logits[:, -1]
        cache.end_step()
        yield cache, logits


def watched(scorer, watch):
    """The same scorer, telling `watch` about every view after it has observed it."""

    class Watched(type(scorer)):
        together = False

        def observe(self, view):
            super().observe(view)
            watch(view)

    return Watched(**vars(scorer))


def last_view(scorer, leaving=6, **how) -> SlotView:
    """The slots of the second layer after 56 tokens, the budget full, before an eviction of `leaving`."""
    *_, (cache, _logits) = written(scorer, 56, **how)
    return cache.policy_layers[1].view(cache.facts([leaving] * len(cache.lanes)))


@dataclass
class Head:
    """A KV head of a view; positions are keys everywhere, numbers are float64."""

    index: int
    keys: dict[int, torch.Tensor]
    values: dict[int, torch.Tensor]
    queries: dict[int, torch.Tensor]  # [group, head_dim]
    candidates: list[int]  # in the order of the text
    scale: float
    keep: int

    @property
    def held(self) -> list[int]:
        return sorted(self.keys)

    def newest_queries(self, window: int) -> list[int]:
        return sorted(self.queries)[-window:]

    def logits(self, position: int, among=None) -> list[dict[int, float]]:
        """Of each head of the group, what the query of a position sees."""
        seen = [p for p in (self.held if among is None else among) if p <= position]
        return [{p: float(q @ self.keys[p]) * self.scale for p in seen} for q in self.queries[position]]

    def attention(self, window=1, queries="mean", group="mean", among=None) -> dict[int, float]:
        """Attention probabilities by definition; 0 for what a query does not see."""
        slots = self.held if among is None else among
        rows = []
        for position in self.newest_queries(window):
            members = self.logits(position, among)
            if group == "logit_max":
                members = [{p: max(member[p] for member in members) for p in members[0]}]
            members = [softmax(member) for member in members]
            over = max if group == "max" else mean
            rows.append({p: over([member.get(p, 0.0) for member in members]) for p in slots})
        over = max if queries == "max" else mean
        return {p: over([row[p] for row in rows]) for p in slots}

    def pool(self, x: dict[int, float], kernel: int, how: str) -> dict[int, float]:
        """Over the neighbours among everything held, where what x does not have is 0."""
        held, half = self.held, kernel // 2
        over = max if how == "max" else mean
        return {
            p: over([x.get(near, 0.0) for near in held[max(0, at - half) : at + half + 1]])
            for at, p in enumerate(held)
        }

    def value_range(self) -> dict[int, float]:
        return {p: float(value.max() - value.min()) for p, value in self.values.items()}

    def top(self, x: dict[int, float], count: int, among=None) -> set[int]:
        """The `count` highest candidates, the newer first among equals."""
        among = self.candidates if among is None else among
        return set(sorted(among, key=lambda p: (x[p], p), reverse=True)[:count])


def heads_of(view: SlotView, lane: int = 0) -> Iterator[Head]:
    group = view.queries.shape[1] // view.keys.shape[1]
    for head in range(view.keys.shape[1]):
        slots = {int(p): slot for slot, p in enumerate(view.positions[lane, head]) if p >= 0}
        ring = {int(p): at for at, p in enumerate(view.query_positions[lane]) if p >= 0}
        yield Head(
            index=head,
            keys={p: view.keys[lane, head, slot].double() for p, slot in slots.items()},
            values={p: view.values[lane, head, slot].double() for p, slot in slots.items()},
            queries={
                p: view.queries[lane, head * group : (head + 1) * group, at].double()
                for p, at in ring.items()
            },
            candidates=sorted(p for p, slot in slots.items() if view.is_candidate[lane, head, slot]),
            scale=view.scale,
            keep=int(view.keep[lane, head]),
        )


def by_position(view: SlotView, x: torch.Tensor, head: int, lane: int = 0) -> dict[int, float]:
    """What a tensor [lanes, kv_heads, slots] says of each held token."""
    return {int(p): float(x[lane, head, slot]) for slot, p in enumerate(view.positions[lane, head]) if p >= 0}


def kept(view: SlotView, scores: torch.Tensor, head: Head) -> set[int]:
    """The candidates that stay: the `keep` highest, the newer first among equals."""
    return head.top(by_position(view, scores, head.index), head.keep)


def softmax(x: dict[int, float]) -> dict[int, float]:
    if not x:
        return {}
    top = max(x.values())
    weights = {p: exp(value - top) for p, value in x.items()}
    return {p: weight / sum(weights.values()) for p, weight in weights.items()}


def mean(x: list[float]) -> float:
    return sum(x) / len(x)


def close(got: dict[int, float], expected: dict[int, float], tolerance=1e-9) -> bool:
    """The same for every position that is expected."""
    assert expected, "nothing to compare"
    worst = max(abs(got[p] - value) / max(1.0, abs(value)) for p, value in expected.items())
    assert worst < tolerance, f"off by {worst}"
    return True
