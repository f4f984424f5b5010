"""A model over packed slots against its whole text at once, every key and value rounded by the format."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AttentionInterface

from scope_cli.engine.plan import plan_run
from scope_cli.engine.prefill import read_prompt
from scope_cli.engine.replay import feed_known
from scope_cli.engine.run import new_cache, policy_of
from scope_cli.formats import hadamard as matrices
from scope_cli.formats.base import SHORT, SlotFormat
from scope_cli.formats.hadamard import hadamard
from scope_cli.policies.schedule import Schedule
from scope_cli.settings.load import LoadedProfile
from scope_cli.settings.policy import CacheSettings
from tests.helpers.caches import finish, loaded_tiny
from tests.helpers.plain import load_profile
from tests.helpers.tiny import PACKED_FAMILIES, tiny_model

PROMPT, STEPS = 21, 14
FORMS = [*(form for name, form in SHORT.items() if name != "plain"), SlotFormat("int4", "int4"),
         SlotFormat("plain", "int8"), SlotFormat("int8", "plain")]  # fmt: skip


def turn(x):
    return matrices.turn(x, hadamard(x.shape[-1], x.dtype, x.device))


def rounded(x, form, turns):
    """As a slot would give it back."""
    turned = turn(x) if turns else x
    back = form.unpack(form.pack(turned), torch.empty_like(turned))
    return turn(back) if turns else back


def all_at_once(form, exact, prompt):
    """Attention over a whole text, every token's key and value rounded but for the newest of the output."""

    def attend(module, query, key, value, attention_mask, scaling=None, sliding_window=None, **_):
        group = query.shape[1] // key.shape[1]
        keys = rounded(key, form.key_format, form.turns_keys).repeat_interleave(group, 1)
        values = rounded(value, form.value_format, form.turns_values).repeat_interleave(group, 1)
        at = torch.arange(query.shape[2])
        distance = at[:, None] - at[None]
        near = (distance < exact) & (at[None] >= prompt)
        logits = query @ keys.mT * scaling
        logits = torch.where(near, query @ key.repeat_interleave(group, 1).mT * scaling, logits)
        window = module.scope_window
        hidden = (distance < 0) | ((distance >= window) if window else torch.zeros_like(near))
        weights = logits.masked_fill(hidden, -torch.inf).softmax(-1)
        out = (weights * near) @ value.repeat_interleave(group, 1) + (weights * ~near) @ values
        return out.transpose(1, 2).contiguous(), None

    return attend


def expected(loaded, family, form, exact, ids, prompt):
    AttentionInterface.register("all_at_once", all_at_once(form, exact, prompt))
    model = tiny_model(family, loaded.dtype, "all_at_once")
    for layer, geometry in zip(model.model.layers, loaded.geometry.layers, strict=True):
        layer.self_attn.scope_window = geometry.window
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits[0]


def profile_with(form, exact, tokens, **decode):
    keys = {"sampling.max_new_tokens": tokens, **{f"decode.{key}": value for key, value in decode.items()}}
    loaded = load_profile("default", keys)
    cache = CacheSettings.model_construct(keys=form.keys, values=form.values, exact=exact)
    return LoadedProfile(loaded.profile.model_copy(update={"cache": cache}), loaded.source, loaded.typed)


def cache_with(loaded, form, exact, prompt=PROMPT, tokens=STEPS + 1, chunk=2048, ids=None, **decode):
    """A cache whose prompt has been read."""
    profile = profile_with(form, exact, tokens, **decode)
    scorer = policy_of(profile.profile.decode).scorer
    plan = plan_run(profile, loaded.geometry, prompt, ring=scorer.ring, memos=len(scorer.memos))
    cache = new_cache(loaded, profile.profile, plan.shape)
    ids = torch.randint(0, 256, (1, prompt)) if ids is None else ids
    logits = finish(read_prompt(loaded.model, cache, ids, plan.schedule, plan=plan.prompt, chunk=chunk))
    return cache, logits


@torch.no_grad()
def stepped(loaded, cache, ids):
    """Logits after each id, [ids, vocab]."""
    rows = []
    for token in ids:
        step = loaded.model(
            input_ids=token.view(1, 1), position_ids=cache.next_position[None], use_cache=False,
            scope_cache=cache,
        )  # fmt: skip
        cache.end_step()
        rows.append(step.logits[0, -1])
    return torch.stack(rows)


@pytest.mark.parametrize("exact", [0, 1, 5, 64])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", PACKED_FAMILIES)
def test_a_text_over_packed_slots_is_the_text_with_rounded_tokens(tmp_path, family, form, exact):
    loaded = loaded_tiny(tmp_path, family, torch.float64)
    torch.manual_seed(1)
    ids = torch.randint(0, 256, (1, PROMPT + STEPS))
    wanted = expected(loaded, family, form, exact, ids, PROMPT)[PROMPT - 1 :]
    for chunk in (2048, 8):
        cache, first = cache_with(loaded, form, exact, ids=ids[:, :PROMPT], chunk=chunk, strategy="full")
        got = torch.cat([first, stepped(loaded, cache, ids[0, PROMPT:])])
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
        assert cache.audit().passed, cache.audit().problems


@pytest.mark.parametrize("exact", [0, 6])
@pytest.mark.parametrize("form", FORMS, ids=str)
@pytest.mark.parametrize("family", ["llama-32", "gemma3-32"])
def test_known_output_that_is_fed_at_once_is_output_that_is_written(tmp_path, family, form, exact):
    """With evictions, in chunks that begin and end anywhere."""
    loaded = loaded_tiny(tmp_path, family, torch.float64)
    torch.manual_seed(2)
    prompt, ids = torch.randint(0, 256, (1, PROMPT)), torch.randint(0, 256, (40,))
    decode = {"budget": 16, "recent": 8, "interval": 5, "scorer": "window"}
    by_step, _ = cache_with(loaded, form, exact, ids=prompt, tokens=41, **decode)
    wanted = stepped(loaded, by_step, ids)
    at_once, _ = cache_with(loaded, form, exact, ids=prompt, tokens=41, **decode)
    got = torch.cat(list(feed_known(loaded.model, at_once, 0, ids.tolist(), 7)))
    torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-4)
    assert at_once.reading() == by_step.reading() and at_once.audit().passed
    for name in ("positions", "bias", "exact.slots", "exact.bias", "exact.keys"):
        for layer, other in zip(at_once.layers, by_step.layers, strict=True):
            if name in layer.tensors():
                torch.testing.assert_close(layer.tensors()[name], other.tensors()[name], rtol=1e-4, atol=1e-4)


@pytest.fixture(scope="module")
def gemma(tmp_path_factory):
    return loaded_tiny(tmp_path_factory.mktemp("model"), "gemma3-32", torch.float32)


@given(
    form=st.sampled_from(FORMS),
    exact=st.integers(0, 40),
    budget=st.integers(2, 24),
    recent=st.integers(1, 12),
    interval=st.integers(1, 9),
    protect=st.booleans(),
    strategy=st.sampled_from(["slide", "adaptive", "discontinuous", "full", "rpc"]),
    scorer=st.sampled_from(["attention", "rkv", "accumulated", "recency", "knorm", "lagkv"]),
)
@settings(max_examples=25)
def test_bytes_are_exact_whatever_the_policy(
    gemma, form, exact, budget, recent, interval, protect, strategy, scorer
):
    recent = min(recent, budget - 1)
    keys = {
        "strategy": strategy, "budget": budget, "recent": recent, "scorer": scorer, "protect_prompt": protect,
        "interval": "auto" if strategy == "discontinuous" else interval,
    }  # fmt: skip
    torch.manual_seed(budget)
    cache, _ = cache_with(gemma, form, exact, tokens=31, **keys)
    planned = cache.shape.cache_bytes(gemma.geometry, 4)
    stepped(gemma, cache, torch.randint(0, 256, (30,)))
    buffers = sum(tensor.nbytes for tensor in cache.tensors().values()) + cache.space.nbytes
    reading, audit = cache.reading(), cache.audit()
    assert planned == buffers == reading.allocated_bytes
    assert audit.passed, audit.problems
    live = sum(int((layer.positions >= 0).sum()) * form.token_bytes(32, 4) for layer in cache.layers)
    assert reading.held_bytes == live
    assert reading.full_bytes >= live


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_a_token_is_packed_once(tmp_path, form, monkeypatch):
    loaded = loaded_tiny(tmp_path, "llama-32", torch.float32)
    packed = []
    original = type(form.key_format).pack if form.keys != "plain" else type(form.value_format).pack
    kind = form.key_format if form.keys != "plain" else form.value_format

    def counting(self, x):
        packed.append(x[..., 0].numel())
        return original(self, x)

    monkeypatch.setattr(type(kind), "pack", counting)
    cache, _ = cache_with(loaded, form, 4, budget=8, recent=4, interval=2)
    stepped(loaded, cache, torch.randint(0, 256, (STEPS,)))
    sides = 2 if form.keys == form.values else 1
    assert cache.reading().evictions > 0
    assert sum(packed) == sides * (PROMPT + STEPS) * sum(layer.kv_heads for layer in loaded.geometry.layers)


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_what_a_prompt_keeps_is_copied_as_it_was_packed(tmp_path, form):
    """By a method that compresses; and the scorer sees the same tokens as attention does."""
    loaded = loaded_tiny(tmp_path, "llama-32", torch.float32)
    torch.manual_seed(3)
    prompt = torch.randint(0, 256, (1, 40))
    whole, _ = cache_with(loaded, form, 0, prompt=40, ids=prompt, strategy="full")
    profile = profile_with(form, 0, 9, strategy="full")
    prefill = load_profile("default", {"prefill.method": "snapkv", "prefill.budget": 12, "prefill.window": 4})
    merged = profile.profile.model_copy(update={"prefill": prefill.profile.prefill})
    profile = LoadedProfile(merged, profile.source, profile.typed)
    plan = plan_run(profile, loaded.geometry, 40)
    cache = new_cache(loaded, merged, plan.starting_shape)
    finish(read_prompt(loaded.model, cache, prompt, plan.schedule, plan=plan.prompt))
    assert cache.audit().passed, cache.audit().problems
    for layer, full in zip(cache.policy_layers, whole.policy_layers, strict=True):
        for head in range(layer.geometry.kv_heads):
            positions = layer.positions[0, head, :12].long()
            for kept, all_of_it in zip(layer.store.parts, full.store.parts, strict=True):
                assert torch.equal(kept[0, head, :12], all_of_it[0, head, positions])


def test_lanes_with_packed_slots_do_not_see_each_other(tmp_path):
    loaded = loaded_tiny(tmp_path, "llama-32", torch.float32)
    form = SHORT["k8v4"]
    profile = profile_with(form, 4, STEPS + 1, budget=8, recent=4, interval=3)
    plan = plan_run(profile, loaded.geometry, PROMPT)
    torch.manual_seed(4)
    prompts, ids = torch.randint(0, 256, (3, 1, PROMPT)), torch.randint(0, 256, (STEPS, 3))

    def written(lanes):
        from dataclasses import replace

        cache = new_cache(loaded, profile.profile, replace(plan.shape, lanes=3))
        for lane in lanes:
            finish(read_prompt(loaded.model, cache, prompts[lane], plan.schedule, lane=lane))
        rows = []
        for step in ids:
            with torch.no_grad():
                out = loaded.model(
                    input_ids=step.view(3, 1), position_ids=cache.next_position[:, None], use_cache=False,
                    scope_cache=cache,
                )  # fmt: skip
            cache.end_step()
            rows.append(out.logits[:, -1])
        assert cache.audit().passed, cache.audit().problems
        return torch.stack(rows)

    together = written([0, 1, 2])
    for lane in range(3):
        assert torch.equal(written([lane])[:, lane], together[:, lane])


def test_a_schedule_never_lets_an_exact_token_go(tmp_path):
    """Exact tokens are among the recent ones, whatever is asked for."""
    loaded = loaded_tiny(tmp_path, "llama-32")
    profile = profile_with(SHORT["int8"], 500, 40, budget=16, recent=3)
    plan = plan_run(profile, loaded.geometry, PROMPT)
    assert plan.shape.exact == 3 and isinstance(plan.schedule, Schedule)
