"""Attention that each prompt token receives, against loops over queries and keys."""

import pytest
import torch

from scope_cli.policies import received


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 2), (3, 3)])
@pytest.mark.parametrize(("start", "tokens"), [(0, 11), (5, 6), (7, 1)])
@pytest.mark.parametrize("block", [1, 4, 128])
def test_received_sums_over_causal_queries_and_averages_over_the_group(
    heads, kv_heads, start, tokens, block, monkeypatch
):
    monkeypatch.setattr(received, "QUERY_BLOCK", block)
    torch.manual_seed(heads + start + tokens)
    queries = torch.randn(heads, tokens, 8, dtype=torch.float64)
    keys = torch.randn(kv_heads, start + tokens, 8, dtype=torch.float64)
    expected = torch.zeros(kv_heads, start + tokens, dtype=torch.float64)
    group = heads // kv_heads
    for head in range(heads):
        for i in range(tokens):
            seen = start + i + 1
            row = torch.stack([queries[head, i] @ keys[head // group, p] * 0.3 for p in range(seen)])
            expected[head // group, :seen] += row.softmax(0) / group
    got = received.received(queries, keys, start, 0.3)
    assert (got - expected).abs().max() < 1e-12


def test_received_is_float32_for_a_bfloat16_cache():
    queries, keys = torch.randn(4, 5, 8).bfloat16(), torch.randn(2, 5, 8).bfloat16()
    got = received.received(queries, keys, 0, 0.3)
    assert got.dtype == torch.float32
    assert (got.sum(1) - 5).abs().max() < 1e-5  # every query gives 1 in all
