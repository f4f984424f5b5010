"""The slow, obvious SCOPE: plain lists of tokens, attention written out, evictions as the design says them.

It shares no code with the tool. Model code is transformers', with an attention implementation of its own that
keeps, per layer and KV head, a list of (position, key, value) and walks it token by token.
"""

from dataclasses import dataclass, field
from math import ceil, inf

import torch
from transformers import AttentionInterface, PreTrainedModel

Held = dict[int, tuple[torch.Tensor, torch.Tensor]]  # position -> key, value, of one KV head


@dataclass
class Oracle:
    """`kept(layer, head)` are the positions that a KV head holds after each step."""

    model: PreTrainedModel
    prompt: list[int]
    strategy: str
    budget: int
    recent: int
    planned: int
    interval: int = 1
    scorer: str = "attention"
    protect_prompt: bool = True
    sinks: int = 0
    total_budget: int | None = None
    seed: int = 0
    n: int = 0
    held: dict[tuple[int, int], Held] = field(default_factory=dict)

    def read(self) -> torch.Tensor:
        return self.feed(self.prompt, 0)

    def write(self, token: int) -> torch.Tensor:
        """One decode step; the logits after it, [vocab]."""
        self.n += 1
        return self.feed([token], len(self.prompt) + self.n - 1)

    def feed(self, ids: list[int], start: int) -> torch.Tensor:
        positions = torch.arange(start, start + len(ids)).unsqueeze(0)
        self.start = start
        with torch.no_grad():
            return self.model(
                input_ids=torch.tensor([ids]), position_ids=positions, use_cache=False, oracle=self
            ).logits[0, -1]

    def kept(self, layer: int, head: int) -> list[int]:
        return sorted(self.held[layer, head])

    def attend(self, module, query, key, value, scaling):
        window = getattr(module, "sliding_window", None) or inf
        out = torch.zeros_like(query)
        group = query.shape[1] // key.shape[1]
        for head in range(key.shape[1]):
            held = self.held.setdefault((module.layer_idx, head), {})
            for i in range(query.shape[2]):
                position = self.start + i
                held[position] = (key[0, head, i], value[0, head, i])
                seen = [p for p in held if position - p < window]
                probabilities = []
                for member in range(head * group, (head + 1) * group):
                    logits = torch.stack([query[0, member, i] @ held[p][0] * scaling for p in seen])
                    weights = logits.softmax(0)
                    out[0, member, i] = sum(w * held[p][1] for w, p in zip(weights, seen, strict=True))
                    probabilities.append(weights)
            if window != inf:
                for p in [p for p in held if position - p >= window]:
                    del held[p]
            elif self.n:
                mean = dict(zip(seen, (sum(probabilities) / group).tolist(), strict=True))
                self.evict(held, mean, module.layer_idx, head, position)
        return out.transpose(1, 2), None

    def evict(self, held: Held, attention: dict[int, float], layer: int, head: int, position: int) -> None:
        prompt = len(self.prompt)
        allowed = self.allowed()
        if allowed is None:
            return
        if self.protect_prompt:
            counted, limit, floor = sum(p >= prompt for p in held), allowed, self.recent
        else:
            counted, floor = len(held), self.recent + min(self.sinks, prompt)
            limit = self.total_budget if self.total_budget is not None else prompt + allowed
        if counted <= limit:
            return
        interval = self.interval
        if self.strategy == "discontinuous":
            interval = max(1, ceil((self.planned - self.recent) / (self.budget - self.recent)))
        target = max(floor, limit - interval + 1)
        spared = prompt if self.protect_prompt else min(self.sinks, prompt)  # the first positions
        candidates = [p for p in held if spared <= p <= position - self.recent]
        score = {p: self.score(p, attention, layer, head) for p in candidates}
        for victim in sorted(candidates, key=lambda p: (score[p], p))[: counted - target]:
            del held[victim]

    def allowed(self) -> int | None:
        if self.strategy == "full":
            return None
        if self.strategy == "slide":
            return self.budget
        if self.planned <= self.budget:
            return None
        grown = max(0, self.n - self.recent) * (self.budget - self.recent) // (self.planned - self.recent)
        return min(self.budget, self.recent + grown)

    def score(self, position: int, attention: dict[int, float], layer: int, head: int) -> float:
        if self.scorer == "recency":
            return position
        if self.scorer == "random":
            state = self.seed
            for part in (layer, head, self.n, position):
                state = splitmix(state + part + 1)
            return (state >> 40) / 2**24
        return attention[position]


def splitmix(x: int) -> int:
    """SplitMix64's output for state x, on unsigned 64-bit integers."""
    full = 2**64 - 1
    x = x * 0x9E3779B97F4A7C15 & full
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & full
    x = (x ^ x >> 27) * 0x94D049BB133111EB & full
    return x ^ x >> 31


def _attend(module, query, key, value, attention_mask, scaling=None, oracle=None, **_):
    return oracle.attend(module, query, key, value, scaling)


AttentionInterface.register("oracle", _attend)
