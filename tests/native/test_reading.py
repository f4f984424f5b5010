"""A prompt's chunk attends in C++: the plain formula in float64, and the same bits from every kind of CPU."""

import pytest
import torch

from scope_cli.cache.layers import Causal
from scope_cli.native.reading import attend_chunk

CASES = [  # kv_heads, group, head_dim, tokens, seen, window
    (3, 3, 64, 150, 150, None),
    (3, 3, 64, 150, 377, None),
    (2, 1, 80, 37, 137, None),
    (1, 8, 16, 5, 300, None),
    (3, 2, 20, 130, 200, 17),
    (2, 7, 128, 70, 70, 64),
    (1, 2, 256, 65, 129, 200),
    (3, 3, 64, 1, 1, None),
    (3, 3, 64, 1, 130, 1),
]


def made(case):
    kv_heads, group, head_dim, tokens, seen, _ = case
    chance = torch.Generator().manual_seed(sum(case[:5]))
    query = torch.randn(1, tokens, kv_heads * group, head_dim, generator=chance).transpose(1, 2)
    keys, values = torch.randn(2, 1, kv_heads, seen + 9, head_dim, generator=chance)[:, :, :, :seen]
    return query, keys, values


@pytest.mark.parametrize("case", CASES, ids=str)
def test_a_chunks_attention_is_the_plain_formula_with_the_same_bits_everywhere(native, case):
    query, keys, values = made(case)
    *_, tokens, seen, window = case
    mask = Causal(tokens, seen, window).mask(query.device)
    logits = query.double() @ keys.double().repeat_interleave(case[1], 1).mT * 0.2
    sees = mask if mask is not None else torch.ones(tokens, seen, dtype=torch.bool).tril()
    weights = logits.masked_fill(~sees, -torch.inf).softmax(-1)
    expected = weights @ values.double().repeat_interleave(case[1], 1)
    native.use("plain")
    plain = attend_chunk(query, keys, values, 0.2, window)
    torch.testing.assert_close(plain.double(), expected, atol=5e-6, rtol=1e-5)
    for instructions in native.all_instructions():
        native.use(instructions)
        for threads in (1, 3):
            native.threads(threads)
            assert torch.equal(attend_chunk(query, keys, values, 0.2, window), plain)


def test_a_token_gets_the_same_bits_in_every_chunk(native):
    query, keys, values = made((2, 3, 64, 200, 200, None))
    whole = attend_chunk(query, keys, values, 0.2, None)
    for first, last in ((0, 7), (7, 64), (64, 199), (199, 200)):
        part = attend_chunk(query[:, :, first:last], keys[:, :, :last], values[:, :, :last], 0.2, None)
        assert torch.equal(part, whole[:, :, first:last])
