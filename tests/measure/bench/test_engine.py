"""The contenders themselves, in this process: a state that was fed is the state that was written."""

import pytest
import torch

from scope_cli.errors import UsageError
from scope_cli.measure.bench.engine import SETTLE, ScopeEngine
from scope_cli.measure.bench.peers import CACHES, TransformersPeer, stored_bytes
from scope_cli.measure.bench.protocol import Job

PROMPT = list(b"The lighthouse keeper wrote: ")
OTHER = PROMPT[9:] + PROMPT[:9]
SLIDE = {"decode.budget": 16, "decode.recent": 4, "decode.interval": 4}


def job(folder, lanes=1, tokens=200):
    return Job(str(folder), str(folder), len(PROMPT), len(PROMPT) + tokens, lanes=lanes)


def engine(folder, profile="default", lanes=1, **overrides):
    made = ScopeEngine(
        profile, {"model.name": str(folder), "model.device": "cpu", **SLIDE, "cache.kv": "plain", **overrides}
    )
    return made, made.load(job(folder, lanes))


def peer(folder, kind, lanes=1):
    made = TransformersPeer(kind, {"model.name": str(folder), "model.device": "cpu"})
    return made, made.load(job(folder, lanes))


@pytest.mark.parametrize("scorer", ["attention", "accumulated"])
def test_a_state_that_was_fed_is_the_state_that_was_written(tiny_folder, scorer):
    wrote, _ = engine(tiny_folder, **{"decode.scorer": scorer})
    wrote.read([PROMPT])
    _, (first,) = wrote.step(50)
    _, (rest,) = wrote.step(20)
    fed, _ = engine(tiny_folder, **{"decode.scorer": scorer})
    fed.read([PROMPT])
    assert fed.advance([first]) == rest[:1]
    took, (again,) = fed.step(20)
    assert again == rest
    assert took > 0
    assert fed.pending[0].n == wrote.pending[0].n == 71
    assert fed.account() == wrote.account()
    assert fed.run.cache.reading().evictions == wrote.run.cache.reading().evictions > 5
    assert fed.run.cache.audit().passed


def test_a_long_way_is_fed_with_fewer_evictions_and_holds_as_much(tiny_folder):
    known = PROMPT * 6
    every = {"decode.interval": 1}
    wrote, _ = engine(tiny_folder, **every)
    wrote.read([PROMPT])
    wrote.step(len(known))
    fed, _ = engine(tiny_folder, **every)
    fed.read([PROMPT])
    fed.advance([known])
    fed.step(20)
    wrote.step(20)
    assert fed.account() == wrote.account()
    made, those = (one.run.cache.reading().evictions for one in (fed, wrote))
    assert SETTLE < made < those - 20


def test_feeding_goes_on_where_writing_stopped(tiny_folder):
    one, _ = engine(tiny_folder)
    one.read([PROMPT])
    _, (first,) = one.step(30)
    one.advance([list(b"something else")])
    _, (rest,) = one.step(10)
    other, _ = engine(tiny_folder)
    other.read([PROMPT])
    other.advance([first + list(b"something else")])
    assert other.step(10)[1] == [rest]


def test_lanes_write_what_they_write_alone(tiny_folder):
    both, loaded = engine(tiny_folder, lanes=2)
    both.read([PROMPT, OTHER])
    both.advance([PROMPT, PROMPT])
    _, ids = both.step(30)
    for prompt, written in zip((PROMPT, OTHER), ids, strict=True):
        alone, _ = engine(tiny_folder)
        alone.read([prompt])
        alone.advance([PROMPT])
        assert alone.step(30)[1] == [written]
    assert not loaded.exact
    assert "slide" in loaded.policy


@pytest.mark.parametrize("kind", [kind for kind in CACHES if kind != "quantized"])
def test_transformers_own_caches_write_what_the_full_cache_writes(tiny_folder, kind):
    ours, about_us = engine(tiny_folder, "full", lanes=2)
    theirs, about_them = peer(tiny_folder, kind, lanes=2)
    assert about_us.exact and about_them.exact
    assert ours.read([PROMPT, OTHER]) == theirs.read([PROMPT, OTHER])
    assert ours.advance([OTHER, PROMPT]) == theirs.advance([OTHER, PROMPT])
    _, expected = ours.step(40)
    _, first = theirs.step(20)
    took, second = theirs.step(19)
    assert [(a + b)[:38] for a, b in zip(first, second, strict=True)] == [ids[:38] for ids in expected]
    assert took > 0


def test_a_new_prompt_finds_an_empty_cache(tiny_folder):
    for contender in (
        engine(tiny_folder)[0],
        peer(tiny_folder, "dynamic")[0],
        peer(tiny_folder, "static")[0],
    ):
        before = contender.read([PROMPT])
        _, ids = contender.step(8)
        assert contender.read([PROMPT]) == before
        assert contender.step(8)[1] == ids


def test_bytes_are_those_of_the_tokens(tiny_folder):
    token = 2 * 2 * 2 * 8 * 4  # keys and values, two layers, two KV heads, 8 wide, float32
    dynamic, about = peer(tiny_folder, "dynamic")
    dynamic.read([PROMPT])
    dynamic.step(3)
    account = dynamic.account()
    held = len(PROMPT) + 3
    assert account.held_bytes == account.read_bytes == held * token
    assert account.moved_bytes == sum(len(PROMPT) + step for step in range(3)) * token
    static, _ = peer(tiny_folder, "static")
    static.read([PROMPT])
    static.step(3)
    slots = len(PROMPT) + 200
    assert static.account().held_bytes == held * token
    assert (static.account().read_bytes, static.account().moved_bytes) == (slots * token, 0)
    slide, about_us = engine(tiny_folder)
    slide.read([PROMPT])
    slide.step(60)
    assert slide.account().moved_bytes == 0
    assert slide.account().held_bytes <= (len(PROMPT) + 16) * token
    assert about.weight_bytes == about_us.weight_bytes > 0


def test_quantised_weights_are_not_exact(tiny_folder):
    pytest.importorskip("bitsandbytes")
    made, about = engine(tiny_folder, "full", **{"model.load_in": "8bit"})
    assert not about.exact
    made.read([PROMPT])


def test_a_text_beyond_the_context_is_an_error(tiny_folder):
    made = ScopeEngine("default", {"model.name": str(tiny_folder)})
    with pytest.raises(UsageError, match="context"):
        made.load(Job(str(tiny_folder), str(tiny_folder), 100, 9000))


def test_stored_bytes_looks_into_quantised_tensors():
    assert stored_bytes(torch.zeros(3, dtype=torch.float32)) == 12
    assert stored_bytes(None) == 0
