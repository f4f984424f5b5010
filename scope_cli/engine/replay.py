"""A known output in, the logits the model gives under a profile's cache out: teacher forcing.

The tokens between two evictions go through the model at once; that gives what feeding them one by one gives,
many times faster (tests/engine/test_decode.py). A prompt that several policies keep whole is read once.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.plan import LanePlan
from scope_cli.engine.prefill import read_prompt, read_to_end
from scope_cli.engine.run import new_cache
from scope_cli.engine.run_plan import make_plan, policy_of
from scope_cli.models.lean import PreTrainedModel
from scope_cli.models.model import LoadedModel
from scope_cli.settings.load import LoadedProfile, load_profile

MOST_AT_ONCE = 64  # tokens: the logits of more would not fit beside a large vocabulary
MOST_QUERIES = 64  # of a prompt that was read once: scorers with a larger window read it again


@dataclass(frozen=True)
class PromptState:
    """A prompt that has been read whole: what every policy that keeps it starts from.

    logits: [1, vocab]; by layer: keys and values [kv_heads, prompt, head_dim], the last queries
    [1, heads, queries, head_dim]
    """

    ids: list[int]
    logits: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    queries: list[Tensor]

    def put_into(self, cache: ScopeCache, plan: LanePlan) -> None:
        """As if the cache had read the prompt itself."""
        prompt = len(self.ids)
        cache.start_prompt(0, plan.schedule)
        positions = torch.arange(prompt, device=cache.device).expand(cache.layers[0].geometry.kv_heads, -1)
        cache.resume_prompt(0, prompt - self.queries[0].shape[2])
        cache.start_chunk(0, self.queries[0].shape[2])
        for layer, keys, values, queries in zip(
            cache.policy_layers, self.keys, self.values, self.queries, strict=True
        ):
            layer.place(0, (keys, values), positions)
            layer.remember(queries, cache.chunk)
        cache.end_chunk()
        cache.start_decode(0)


@torch.no_grad()
def read_once(loaded: LoadedModel, prompt_ids: list[int]) -> PromptState | None:
    """Read a prompt with the full cache; None where sliding windows hold only a part of it."""
    if loaded.geometry.policy_layers < len(loaded.geometry.layers):
        return None
    asked = {"sampling.max_new_tokens": 1, "decode.scorer": "attention", "cache.kv": "plain"}
    settings = load_profile("full", asked)
    plan = make_plan(settings, loaded.geometry, len(prompt_ids), ring=min(MOST_QUERIES, len(prompt_ids)))
    cache = new_cache(loaded, settings.profile, plan.starting_shape)
    logits = read_to_end(
        read_prompt(loaded.model, cache, torch.tensor([prompt_ids]), plan.schedule, native=loaded.native)
    )
    prompt, ring = len(prompt_ids), cache.shape.ring
    in_order = torch.arange(prompt - ring, prompt, device=cache.device) % ring
    return PromptState(
        prompt_ids,
        logits,
        keys=[layer.keys[0, :, :prompt] for layer in cache.policy_layers],
        values=[layer.values[0, :, :prompt] for layer in cache.policy_layers],
        queries=[layer.queries[:, :, in_order] for layer in cache.policy_layers],
    )


@torch.no_grad()
def replay(
    loaded: LoadedModel,
    settings: LoadedProfile,
    prompt_ids: list[int],
    output_ids: list[int],
    state: PromptState | None = None,
    queries: int = 1,
) -> Iterator[tuple[Tensor, ScopeCache]]:
    """Logits that predict output_ids, in order, some tokens at a time, [tokens, vocab]; and the cache.

    `state` is used where the profile keeps the whole prompt and asks no more of it. The cache remembers the
    newest `queries` at least, for whoever wants to look at them.
    """
    every_step = policy_of(settings.profile.decode).scorer.every_step
    ring = max(queries, MOST_AT_ONCE if every_step else 1)  # every step is observed with its own query
    plan = make_plan(settings, loaded.geometry, len(prompt_ids), ring)
    cache = new_cache(loaded, settings.profile, plan.starting_shape)
    whole = not plan.prompt.staged and cache.policy.protect_prompt and plan.shape.ring <= MOST_QUERIES
    whole = whole and not plan.shape.form.packs  # whoever packs reads its own rounding, from the prompt on
    if state is not None and whole and state.ids == prompt_ids:
        state.put_into(cache, plan)
        yield state.logits, cache
    else:
        prompt = torch.tensor([prompt_ids])
        reading = read_prompt(
            loaded.model, cache, prompt, plan.schedule, plan=plan.prompt, native=loaded.native
        )
        yield read_to_end(reading), cache
    for logits in feed_known(
        loaded.model, cache, 0, output_ids[:-1]
    ):  # the last predicts nothing that is known
        yield logits, cache


@torch.no_grad()
def feed_known(
    model: PreTrainedModel, cache: ScopeCache, lane: int, output_ids: list[int], most: int = MOST_AT_ONCE
) -> Iterator[Tensor]:
    """Put known output into a lane, with every eviction where it falls; the logits after each token, at most
    `most` tokens at a time, [tokens, vocab]."""
    ids = torch.tensor([output_ids], device=cache.device)
    fed = 0
    while fed < ids.shape[1]:
        tokens = min(cache.tokens_to_eviction(lane), ids.shape[1] - fed, most)
        positions = cache.start_known(lane, tokens)
        logits = model(
            input_ids=ids[:, fed : fed + tokens], position_ids=positions, use_cache=False, scope_cache=cache
        ).logits[0]
        cache.end_chunk()
        fed += tokens
        yield logits
