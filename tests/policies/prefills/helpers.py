"""Read a prompt under a profile, write some tokens after it; and attention written out."""

import math

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.cache.staging import Staging
from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import policy_of
from scope_cli.models.architecture import geometry_of
from scope_cli.models.attention import attention_of
from scope_cli.models.skeleton import rope_frequencies
from scope_cli.policies.prefills.base import PromptView
from scope_cli.settings.load import LoadedProfile
from tests.helpers.caches import finish
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_model

PROMPT, WINDOW = 61, 5
_models = {}


def model_of(family, dtype=torch.float64):
    if (family, dtype) not in _models:
        _models[family, dtype] = tiny_model(family, dtype)
    return _models[family, dtype]


def prompt_of(tokens=PROMPT, seed=0):
    return torch.randint(0, 256, (1, tokens), generator=torch.Generator().manual_seed(seed))


def planned(family, prompt_tokens, prefill, steps=12, **decode):
    profile = profile_of(
        {
            "prefill": {"window": WINDOW, **prefill},
            "decode": {"budget": 6, "recent": 2, "interval": 2, **decode},
            "sampling": {"max_new_tokens": steps + 1},
        }
    )
    assert not list(profile.problems())
    loaded = LoadedProfile(profile, "test", frozenset())
    return profile, plan_run(loaded, geometry_of(model_of(family).config), prompt_tokens)


def empty_cache(family, profile, plan, dtype=torch.float64):
    model = model_of(family, dtype)
    geometry = geometry_of(model.config)
    return ScopeCache(
        geometry,
        plan.starting_shape,
        policy_of(profile.decode),
        inv_freq=rope_frequencies(model),
        attention=attention_of(model, geometry, profile.decode.weigh is not None),
        dtype=dtype,
    )


def read(family, ids, prefill, dtype=torch.float64, chunk=512, cache=None, seed=7, **decode):
    """A cache whose lane holds what stays of a prompt, its plan, and the logits of the last token."""
    profile, plan = planned(family, ids.shape[1], prefill, **decode)
    cache = cache or empty_cache(family, profile, plan, dtype)
    reading = read_prompt(
        model_of(family, dtype), cache, ids, plan.schedule, plan=plan.prompt, seed=seed, chunk=chunk
    )
    return cache, plan, finish(reading)


@torch.no_grad()
def write(family, cache, tokens):
    """Feed tokens one by one; the logits after the last."""
    for token in tokens:
        logits = model_of(family, cache.dtype)(
            input_ids=token.view(1, 1),
            position_ids=cache.next_position[None],
            use_cache=False,
            scope_cache=cache,
        ).logits[0, -1]
        cache.end_step()
    return logits


def prompt_positions(cache, prompt=PROMPT):
    """Prompt positions held, sorted, by policy layer and KV head."""
    return [
        [sorted(p for p in head.tolist() if 0 <= p < prompt) for head in layer.positions[0]]
        for layer in cache.policy_layers
    ]


def views(family, ids, prefill) -> list[PromptView]:
    """What a method sees once a prompt has been read."""
    profile, plan = planned(family, ids.shape[1], prefill)
    cache = empty_cache(family, profile, plan)
    cache.start_prompt(0, plan.schedule, 7)
    staging = Staging(cache, 0, plan.prompt, 7)
    with torch.no_grad():
        positions = cache.start_chunk(0, ids.shape[1])
        model_of(family)(input_ids=ids, position_ids=positions, use_cache=False, scope_cache=staging)
        cache.end_chunk()
    return [staged.view(ids.shape[1]) for staged in staging.staged]


def rows(view, queries):
    """Causal attention of every given query, by query head: {(head, position): [probabilities]}.

    queries: [heads, tokens, head_dim], the prompt's last
    """
    group = queries.shape[0] // view.kv_heads
    first = view.prompt - queries.shape[1]
    found = {}
    for head in range(queries.shape[0]):
        for i in range(queries.shape[1]):
            products = [
                math.fsum((queries[head, i] * view.keys[head // group, j]).tolist()) * view.scale
                for j in range(first + i + 1)
            ]
            top = max(products)
            weights = [math.exp(product - top) for product in products]
            total = math.fsum(weights)
            found[head, first + i] = [w / total for w in weights] + [0.0] * (view.prompt - first - i - 1)
    return found
