"""A known output in, the logits the model gives under a profile's cache out: teacher forcing.

The tokens between two evictions go through the model at once; that gives what feeding them one by one gives
(tests/test_decode.py), many times faster.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from scope_cli.cache import ScopeCache
from scope_cli.generate import make_plan, new_cache
from scope_cli.model import LoadedModel
from scope_cli.prefill import read_prompt
from scope_cli.profile import LoadedProfile

MOST_AT_ONCE = 64  # tokens: the logits of more would not fit beside a large vocabulary


@torch.no_grad()
def replay(
    loaded: LoadedModel, settings: LoadedProfile, prompt_ids: list[int], output_ids: list[int]
) -> Iterator[tuple[Tensor, ScopeCache]]:
    """Logits that predict output_ids, in order, some tokens at a time, [tokens, vocab]; and the cache."""
    plan = make_plan(settings, loaded.geometry, len(prompt_ids))
    cache = new_cache(loaded, settings.profile, plan)
    reading = read_prompt(loaded.model, cache, torch.tensor([prompt_ids]), plan.schedule, plan=plan.prompt)
    while True:
        try:
            next(reading)
        except StopIteration as end:
            yield end.value, cache
            break
    ids = torch.tensor([output_ids[:-1]], device=loaded.device)  # the last predicts nothing that is known
    fed = 0
    while fed < ids.shape[1]:
        tokens = min(cache.tokens_to_eviction(0), ids.shape[1] - fed, MOST_AT_ONCE)
        positions = cache.start_known(0, tokens)
        logits = loaded.model(
            input_ids=ids[:, fed : fed + tokens], position_ids=positions, use_cache=False, scope_cache=cache
        ).logits[0]
        cache.end_chunk()
        fed += tokens
        yield logits, cache
