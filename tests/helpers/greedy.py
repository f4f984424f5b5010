"""The tokens that scope writes, and those that transformers writes, each by the shortest way."""

import torch

from scope_cli.cache.cache import ScopeCache
from scope_cli.engine.decode import Lane, decode
from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.run_plan import policy_of
from scope_cli.engine.sampling import Sampler
from scope_cli.engine.step import EagerStep
from scope_cli.engine.text import TextStream
from scope_cli.events import Token
from scope_cli.models.architecture import geometry_of
from scope_cli.models.attention import attention_of
from scope_cli.settings.load import LoadedProfile
from tests.helpers.caches import finish
from tests.helpers.plain import profile_of
from tests.helpers.tiny import tiny_tokenizer


def admitted(lane):
    """A lane whose prompt has been read already."""
    yield from ()
    return lane


def write(model, prompt, new_tokens, tokenizer=None, **decode_settings) -> list[int]:
    """The ids that scope writes, ignoring the end-of-text token."""
    profile = profile_of(
        {"decode": decode_settings, "sampling": {"max_new_tokens": new_tokens, "ignore_eos": True}}
    )
    geometry = geometry_of(model.config)
    plan = plan_run(LoadedProfile(profile, "test", frozenset()), geometry, len(prompt), ring=1)
    told = attention_of(model, geometry, weighs=False)
    cache = ScopeCache(geometry, plan.shape, policy_of(profile.decode), attention=told, dtype=model.dtype)
    ids = torch.tensor([prompt])
    logits = finish(read_prompt(model, cache, ids, plan.schedule, chunk=20))
    sampler = Sampler(profile.sampling, len(prompt), (), "cpu")
    text = TextStream(tokenizer or tiny_tokenizer(), prompt)
    lane = Lane(ids, logits, sampler, text, frozenset(), new_tokens)
    read = iter([admitted(lane)])
    step = EagerStep(model, cache)
    *events, end = decode(step, cache, lambda row: next(read, None), finish=lambda lane: lane.reason)
    assert all(isinstance(event, Token) for event in events) and end == "length"
    assert cache.audit().passed
    return [event.token_id for event in events]


def plain(model, prompt, new_tokens) -> list[int]:
    """The same from transformers."""
    ids = torch.tensor([prompt])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=new_tokens,
        do_sample=False,
        eos_token_id=None,
        pad_token_id=0,
    )
    return out[0, len(prompt) :].tolist()
