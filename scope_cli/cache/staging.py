"""A prompt's keys and values, all of them, until what stays is chosen and copied into its lane.

`Staging` takes the cache's place in the model call while the prompt is read. Layers under the policy are
staged; sliding windows go straight to the lane, since they bound themselves.
"""

from typing import Any

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.layers import Causal, Chunk, SlotLayer
from scope_cli.cache.policy_layer import PolicyLayer
from scope_cli.cache.policy_slots import FREE
from scope_cli.cache.shape import PromptPlan
from scope_cli.cache.store import Parts, Put, SlotStore
from scope_cli.policies.prefills.base import PromptView, choose


class StagedLayer:
    """One layer's whole prompt.

    store: keys and values, [kv_heads, prompt, ...], in the cache's formats, so that a token is packed once;
        plain where a wrapper is going to rewrite them
    queries: [heads, up to ring, head_dim], the newest
    """

    def __init__(self, cache: ScopeCache, layer: PolicyLayer, plan: PromptPlan, seed: int) -> None:
        self.cache, self.layer, self.plan, self.seed = cache, layer, plan, seed
        self.scale = layer.scale
        geometry = layer.geometry
        like: dict[str, Any] = {"dtype": cache.dtype, "device": cache.device}
        form = plan.staged_form(cache.shape.form)
        size = (geometry.kv_heads,), plan.prompt_tokens, geometry.head_dim
        self.store: SlotStore | None = SlotStore(form, *size, cache.dtype, cache.device, zeros=False)
        self.queries = torch.empty(geometry.heads, 0, geometry.head_dim, **like)
        sums = torch.promote_types(cache.dtype, torch.float32)
        self.memo = {
            name: torch.zeros(*size, dtype=sums, device=cache.device)
            for name, size in plan.method.memos(geometry, plan.prompt_tokens).items()
        }

    def read(self, chunk: Chunk, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor, Any]:
        """Store a chunk; what its queries see: keys, values, mask."""
        assert self.store is not None, "the prompt has been settled"
        parts, seen = self.hold(chunk, keys, values, SlotStore.put_rows)
        seen_keys, seen_values = self.store.turned_parts(parts)
        return seen_keys.unsqueeze(0), seen_values.unsqueeze(0), seen

    def hold(self, chunk: Chunk, keys: Tensor, values: Tensor, put: Put) -> tuple[Parts, Causal]:
        """As a layer's own: store it with `put`; packed, [kv_heads, seen, ...]."""
        assert self.store is not None, "the prompt has been settled"
        put(self.store, keys[0], values[0], self.store.get((slice(None), slice(chunk.start, chunk.end))))
        return self.store.get((slice(None), slice(chunk.end))), Causal(chunk.tokens, chunk.end)

    def remember(self, queries: Tensor, chunk: Chunk) -> None:
        """Queries of a chunk, [1, heads, tokens, head_dim]: for the method, and for the lane's own ring."""
        self.layer.remember(queries, chunk)
        if self.plan.ring:
            self.queries = torch.cat([self.queries, queries[0]], 1)[:, -self.plan.ring :].clone()
        self.plan.method.observe(self.view(chunk.end), queries[0], chunk.start)

    @property
    def counts_received(self) -> bool:
        return self.layer.counts_received

    def add_received(self, attention: Tensor) -> None:
        """What the scorer's memos will start from belongs to the lane."""
        self.layer.add_received(attention)

    def view(self, end: int) -> PromptView:
        """The first `end` tokens."""
        assert self.store is not None, "the prompt has been settled"
        store, seen = self.store, (slice(None), slice(end))
        return PromptView(
            layer=self.layer.index,
            prompt=end,
            kv_heads=self.layer.geometry.kv_heads,
            read_keys=lambda: store.plain_keys(seen),
            read_values=lambda: store.plain_values(seen),
            queries=self.queries,
            window=self.plan.window,
            scale=self.scale,
            drawn_seed=self.seed if self.plan.draws else None,
            inv_freq=self.cache.inv_freq,
            memo=self.memo,
        )

    def tensors(self) -> list[Tensor]:
        return [*(self.store.parts if self.store else ()), self.queries, *self.memo.values()]

    def free(self) -> None:
        self.store, self.queries, self.memo = None, self.queries.new_empty(0), {}


class Staging:
    """Stands for the cache while one lane's prompt is read."""

    def __init__(self, cache: ScopeCache, lane: int, plan: PromptPlan, seed: int) -> None:
        self.cache, self.lane, self.plan = cache, lane, plan
        self.policy = cache.policy
        self.staged = [StagedLayer(cache, layer, plan, seed) for layer in cache.policy_layers]
        self.layers: list[SlotLayer | StagedLayer] = list(cache.layers)
        for staged in self.staged:
            self.layers[staged.layer.index] = staged
        cache.keep_prompt(lane, (0,) * len(cache.layers))  # nothing is held yet

    @property
    def chunk(self) -> Chunk | None:
        return self.cache.chunk

    def tensors(self) -> list[Tensor]:
        return [tensor for staged in self.staged for tensor in staged.tensors()]

    def settle(self) -> None:
        """Choose what stays, copy it into the lane, layer by layer, and free the rest."""
        plan, cache = self.plan, self.cache
        views = [staged.view(plan.prompt_tokens) for staged in self.staged]
        budgets = [plan.kept[view.layer] for view in views]
        for wrapper in plan.wrappers:
            budgets = wrapper.budgets(views, budgets)
        masks = [self._stay(view, budget) for view, budget in zip(views, budgets, strict=True)]
        most = budgets  # slots that a layer needs: with adakv, as many as the head that keeps most
        if plan.late:
            most = [int(mask.sum(-1).max()) for mask in masks]
            cache.fit_prompt(self._by_layer(most))
        del views  # they would hold what is freed
        for staged, layer, mask, needed in zip(self.staged, cache.policy_layers, masks, most, strict=True):
            staged.layer = layer  # where it was fitted, another one
            view = staged.view(plan.prompt_tokens)
            for wrapper in plan.wrappers:
                wrapper.rewrite(view, mask)
            copy_kept(staged, mask, needed, self.lane)
            staged.free()
        cache.keep_prompt(self.lane, self._by_layer(budgets))
        copied = sum(
            budget * cache.shape.slot_bytes(layer.geometry, cache.dtype.itemsize)
            for budget, layer in zip(budgets, cache.policy_layers, strict=True)
        )
        count = cache.count(self.lane)
        count.moved_bytes += copied
        count.reference_moved_bytes += copied  # whoever keeps a part of a prompt copies it

    def _by_layer(self, tokens: list[int]) -> tuple[int, ...]:
        """What was said of each staged layer, by the model's layers; 0 for a sliding window."""
        said = {staged.layer.index: number for staged, number in zip(self.staged, tokens, strict=True)}
        return tuple(said.get(index, 0) for index in range(len(self.layers)))

    def _stay(self, view: PromptView, budget: int) -> Tensor:
        """Which tokens of a layer stay, a mask [kv_heads, prompt]."""
        if budget == view.prompt:
            return torch.ones(view.kv_heads, view.prompt, dtype=torch.bool, device=self.cache.device)
        scores = self.plan.method.score(view)
        for wrapper in self.plan.wrappers:
            mask = wrapper.choose(scores, budget, view.window)
            if mask is not None:
                return mask
        return choose(scores, budget, view.window)


def copy_kept(staged: StagedLayer, mask: Tensor, most: int, lane: int) -> None:
    """Copy the kept tokens of each head, packed as they are, in the order of the text, padded to `most`."""
    store, into = staged.store, staged.layer.store
    assert store is not None, "the prompt has been settled"
    positions = mask.to(torch.uint8).sort(dim=-1, descending=True, stable=True).indices[:, :most]
    parts = store.get((torch.arange(len(positions), device=mask.device).unsqueeze(1), positions))
    if store.form != into.form:  # it was read plain, to be rewritten
        parts = into.pack(*parts)
    free = torch.arange(most, device=mask.device) >= mask.sum(-1, keepdim=True)
    staged.layer.place(lane, parts, positions.masked_fill(free, FREE))
