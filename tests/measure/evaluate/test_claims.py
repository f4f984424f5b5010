"""Budgets of equal bytes, measured; and the overlap of heavy hitters against a plain computation."""

import pytest
import torch

from scope_cli.measure.evaluate.claims import (
    SHORT_LAGS,
    budget_for_mean,
    drift,
    equal_bytes,
    equal_bytes_profiles,
    mean_held,
)
from scope_cli.measure.evaluate.fidelity import KnownText, Reference, measure
from tests.cache.test_cache import loaded_tiny
from tests.tiny import tiny_model

PROMPT, OUTPUT = 300, 640


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    torch.manual_seed(0)
    ids = torch.randint(0, 256, (PROMPT + OUTPUT,)).tolist()
    loaded = loaded_tiny(tmp_path_factory.mktemp("tiny"))
    return Reference.of(loaded, KnownText("noise", ids[:PROMPT], ids[PROMPT:]))


def test_both_ways_hold_the_same_bytes(reference):
    pairs = list(equal_bytes(PROMPT, OUTPUT, ("25%", "50%"), window=32))
    assert {(pair.share, pair.matched) for pair in pairs} == {
        (share, matched) for share in ("25%", "50%") for matched in ("peak", "mean")
    }
    for pair in pairs:
        ways = {name: measure(reference, keys) for name, keys in equal_bytes_profiles(pair).items()}
        prompt, output = ways["prompt"].bytes, ways["output"].bytes
        token = reference.loaded.geometry.token_bytes(4)
        if pair.matched == "peak":
            # `slide` holds its budget and the current token before an eviction, and after the last one fewer
            assert abs(prompt.held_peak - output.held_peak) <= 2 * token
        else:
            assert 0 <= prompt.held_mean - output.held_mean < 2 * token
        assert ways["prompt"].kept_prompt == pair.kept_prompt
        assert ways["output"].kept_prompt == PROMPT


def test_where_a_prompt_saves_more_than_the_output_has_there_is_no_pair():
    assert list(equal_bytes(5000, 200, ("10%",), window=32)) == []
    assert budget_for_mean(0.5, 200) is None


def test_the_mean_is_what_is_held_at_every_token():
    assert mean_held(10_000, 5) == (0 + 1 + 2 + 3 + 4) / 5


def test_drift_agrees_with_the_attention_that_transformers_gives(reference):
    top, most = 16, 128
    found = {row.lag: row for row in drift(reference, top=top, most_lag=most)}
    assert list(found) == [*SHORT_LAGS, 64, 128]
    model = tiny_model(dtype=torch.float32, attention="eager")
    ids = torch.tensor([reference.text.prompt_ids + reference.text.output_ids])
    attentions = model(ids, output_attentions=True).attentions  # layers x [1, heads, tokens, tokens]
    steps = [step for step in range(64, OUTPUT, 64) if step - 32 >= 2 * top and step + most < OUTPUT]
    for lag in (1, 32, 128):
        overlaps, masses = [], []
        for step in steps:
            seen = slice(PROMPT, PROMPT + step - 32)
            for layer in attentions:
                by_head = layer[0].unflatten(0, (2, 2)).mean(1)  # two KV heads of two heads each
                now = by_head[:, PROMPT + step - 1, seen]
                later = by_head[:, PROMPT + step - 1 + lag, seen]
                for one, other in zip(now, later, strict=True):
                    first, second = (set(row.topk(top).indices.tolist()) for row in (one, other))
                    overlaps.append(len(first & second) / top)
                    masses.append((other[list(first)].sum() / other.sum()).item())
        assert found[lag].steps == len(steps)
        assert found[lag].overlap[0] == pytest.approx(sum(overlaps) / len(overlaps), abs=0.01)
        assert found[lag].mass[0] == pytest.approx(sum(masses) / len(masses), abs=0.01)
        assert found[lag].chance == pytest.approx(sum(top / (step - 32) for step in steps) / len(steps))
