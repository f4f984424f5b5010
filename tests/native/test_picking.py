"""A token is picked in C++ as PyTorch's definition picks it, with the same bits from every kind of CPU."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.engine.sampling import LIKELIEST, Asked, Cut, pick_all, pick_together

INF = float("inf")
CUTS = st.one_of(
    st.none(),
    st.builds(
        Cut,
        temperature=st.floats(0.05, 5),
        top_k=st.one_of(st.none(), st.integers(1, 90)),
        top_p=st.floats(0.01, 1),
        min_p=st.one_of(st.just(0.0), st.floats(0, 1)),
    ),
)


@st.composite
def rows(draw):
    """One lane's question: logits with equals, -inf and no numbers among them."""
    vocab = draw(st.sampled_from([1, 7, 64, 65, 400, LIKELIEST, 700, 3000]))
    chance = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    logits = torch.randn(1, vocab, generator=chance) * draw(st.sampled_from([0.0, 0.1, 1.0, 5.0, 50.0]))
    if draw(st.booleans()):
        logits = (logits * 4).round() / 4
    at = st.integers(0, vocab - 1)
    for value in (-INF, -INF, -INF, *draw(st.lists(st.sampled_from([INF, math.nan]), max_size=1))):
        logits[0, draw(at)] = value
    scores = logits
    if draw(st.booleans()):
        scores = logits.clone()
        scores[0, draw(at)] -= 3.0
    forbidden = draw(
        st.none() | st.lists(at, max_size=4).map(lambda ids: torch.tensor(ids, dtype=torch.int64))
    )
    known = draw(st.none() | at.map(lambda one: torch.tensor([[one]])))
    chance = draw(st.floats(0, 1, exclude_max=True))
    return Asked(logits, scores, draw(CUTS), chance, known, forbidden)


def is_alike(asked: Asked, picked: tuple[int, float]) -> bool:
    """Equals may change places, and chance may lie between two tokens, but for rounding."""
    token_id, logprob = picked
    expected = pick_together([asked])[0].tolist()
    if math.isnan(expected[1]):
        return math.isnan(logprob) and 0 <= token_id < asked.logits.shape[-1]
    own = asked.logits.log_softmax(-1)[0, token_id]
    if not math.isclose(logprob, own, rel_tol=1e-5, abs_tol=3e-6):
        return False
    score = asked.allowed()[0]
    nearly = [
        Asked(asked.logits, asked.scores, asked.cut, asked.chance + more, forbidden=asked.forbidden)
        for more in (-1e-5, 0.0, 1e-5)
    ]
    likely = [pick_together([one])[0, 0].long() for one in nearly] if asked.known is None else [asked.known]
    return any(score[token_id] == score[int(one)] or token_id == int(one) for one in likely)


@given(st.lists(rows(), min_size=1, max_size=3))
def test_lanes_get_what_the_definition_says(lanes):
    before = [one.logits.clone() for one in lanes]
    picked = pick_all(lanes)
    assert isinstance(picked, list)
    assert all(is_alike(*of) for of in zip(lanes, picked, strict=True))
    for one, was in zip(lanes, before, strict=True):
        torch.testing.assert_close(one.logits, was, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("vocab", [64, 1000, 49_152])
def test_every_kind_of_cpu_tells_the_same_bits(native, vocab):
    logits = torch.randn(1, vocab, generator=torch.Generator().manual_seed(vocab)) * 4
    asked = [
        Asked(logits, logits, cut, nth / 40, forbidden=torch.tensor([vocab - 1, 2, 2]))
        for cut in (None, Cut(0.7, 50, 0.95), Cut(0.9, None, 0.9), Cut(1.3, None, 1.0, 0.02))
        for nth in range(40)
    ]
    told = []
    for instructions in native.all_instructions():
        native.use(instructions)
        told.append(pick_all(asked))
    assert all(one == told[0] for one in told)


@pytest.mark.parametrize(("chance", "token_id"), [(0.0, 3), (0.49, 3), (0.51, 70), (0.99, 70)])
def test_of_equals_the_lower_id_comes_first(native, chance, token_id):
    """PyTorch's topk leaves that open, and a seed's text may not depend on it."""
    logits = torch.zeros(1, 100)
    logits[0, [70, 3]] = 9.0
    assert pick_all([Asked(logits, logits, Cut(1.0, top_k=2), chance)])[0][0] == token_id
