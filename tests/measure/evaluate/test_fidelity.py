"""The ruler: zero between equals, the plain formulas otherwise, bytes as a real run counts them."""

import math

import pytest
import torch

from scope_cli.engine.replay import replay
from scope_cli.engine.run import generate, new_work
from scope_cli.errors import UsageError
from scope_cli.events import Token
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure, planned
from scope_cli.measure.evaluate.statistics import blocks_of, estimate
from tests.helpers.caches import loaded_tiny
from tests.helpers.plain import load_profile

PROMPT = list(b"The keeper of the lighthouse wrote every evening, and then he went up the stairs once more.")
SMALL = {"decode.budget": 24, "decode.interval": 6}
POLICIES = [
    SMALL,
    {**SMALL, "decode.scorer": "random"},
    {**SMALL, "decode.strategy": "adaptive"},
    {**SMALL, "decode.protect_prompt": False},
    {"decode.budget": 24, "decode.strategy": "discontinuous"},
    {"decode.strategy": "full", "prefill.method": "snapkv", "prefill.budget": "50%"},
]


def written(loaded, keys, tokens=160):
    """What a real run writes, and its events."""
    settings = load_profile(
        "default", {**keys, "sampling.max_new_tokens": tokens, "sampling.ignore_eos": True}
    )
    work = new_work(settings, loaded.geometry, PROMPT)
    return settings, [
        event for event in generate(loaded, settings.profile, [work]) if isinstance(event, Token)
    ]


@pytest.fixture(scope="module", params=["llama", "gemma3"])
def reference(request, tmp_path_factory):
    loaded = loaded_tiny(tmp_path_factory.mktemp("tiny"), request.param)
    _settings, events = written(loaded, {"decode.strategy": "full"})
    return Reference.of(loaded, KnownText("a text", PROMPT, [event.token_id for event in events]))


def test_full_against_full_is_exactly_zero(reference):
    found = measure(reference, load_profile("full"))
    assert found.kl == found.kl_p95 == [0, 0, 0]
    assert found.top1 == [1, 1, 1]
    assert found.first_divergence is None
    assert found.perplexity == found.full_perplexity
    assert set(found.blocks["kl"]) == {0}
    assert found.bytes.held_mean == found.bytes.full_mean


@pytest.mark.parametrize("keys", POLICIES, ids=str)
def test_the_numbers_are_those_of_the_plain_formulas(reference, keys):
    settings = load_profile("default", keys)
    found = measure(reference, settings)
    ids, expected = reference.text.output_ids, reference.logprobs
    replayed = replay(reference.loaded, planned(settings, len(ids)), PROMPT, ids)
    got = torch.cat([logits for logits, _cache in replayed]).log_softmax(-1)
    kl = [
        sum(math.exp(p) * (p - q) for p, q in zip(*rows, strict=True))
        for rows in zip(expected.tolist(), got.tolist(), strict=True)
    ]
    same = [one.argmax() == other.argmax() for one, other in zip(expected, got, strict=True)]
    assert found.kl[0] == pytest.approx(sum(kl) / len(kl), abs=1e-5)
    assert found.kl_p95[0] == pytest.approx(torch.tensor(kl).quantile(0.95).item(), abs=1e-4)
    assert found.top1[0] == pytest.approx(sum(same) / len(same))
    assert found.first_divergence == (same.index(False) if False in same else None)
    nll = [-row[one].item() for row, one in zip(got, ids, strict=True)]
    assert found.perplexity == pytest.approx(math.exp(sum(nll) / len(nll)), rel=1e-5)
    assert found.blocks["nll"][0] == pytest.approx(sum(nll[:32]) / 32, rel=1e-5)
    assert found.kl[0] > 1e-6, "a policy that evicts changes something, or this test says nothing"


@pytest.mark.parametrize("keys", POLICIES, ids=str)
def test_bytes_are_averaged_over_the_tokens_as_a_real_run_reads_them(reference, keys):
    """The replay feeds many tokens at once; a run reads the cache at each."""
    settings, events = written(reference.loaded, keys)
    text = KnownText("its own", PROMPT, [event.token_id for event in events])
    found = measure(Reference(reference.loaded, text, None, torch.zeros(len(events), 260)), settings)
    held = [event.reading.held_bytes for event in events]
    assert found.bytes.held_mean == pytest.approx(sum(held) / len(held))
    assert found.bytes.full_mean == pytest.approx(
        sum(event.reading.full_bytes for event in events) / len(events)
    )
    assert found.bytes.held_end == held[-1]
    assert found.bytes.full_peak == events[-1].reading.full_bytes
    assert max(held) <= found.bytes.held_peak <= found.bytes.allocated
    assert found.evictions == events[-1].reading.evictions


def test_a_row_that_was_saved_gives_the_same_mean(reference):
    row = measure(reference, load_profile("default", SMALL)).as_dict()
    assert estimate([blocks_of(row, "kl")]).mean == pytest.approx(row["kl"][0])
    assert blocks_of(row, "top1").means == pytest.approx(row["blocks"]["top1"])


def test_a_text_that_does_not_fit_is_refused_in_words(reference):
    too_long = KnownText("novel", PROMPT, [1] * 9000)
    with pytest.raises(UsageError, match=r"novel has 9,091 tokens, the model's context is 8,192"):
        Reference.of(reference.loaded, too_long)
    with pytest.raises(UsageError, match="no output to measure"):
        Reference.of(reference.loaded, KnownText("a word", PROMPT, [1]))


def test_distributions_that_do_not_fit_in_memory_are_refused(reference, monkeypatch):
    monkeypatch.setattr("scope_cli.measure.evaluate.fidelity.free_bytes", lambda device: 100_000)
    with pytest.raises(UsageError, match=r"160 distributions over 260 tokens take 162.50 KiB"):
        Reference.of(reference.loaded, reference.text)
