"""Picks against plain oracles: what may be picked, how often, and how probable the model found it."""

import pytest
import torch

from scope_cli.engine import sampling
from scope_cli.engine.sampling import DRAWS, Asked, Change, Cut, Draws, Sampler, pick_all
from scope_cli.settings.schema import SamplingSettings
from tests.helpers.picking import pick

LOGITS = torch.tensor([[2.0, 1.5, 1.0, 0.5, 0.0, -1.0, -3.0]])
PROMPT = torch.tensor([[0, 1]])
EOS = (0, 3)


@pytest.fixture(params=["C++", "PyTorch"], autouse=True)
def both_ways(request, monkeypatch):
    if request.param == "PyTorch":
        monkeypatch.setattr(sampling, "library", lambda: None)


def sampler(prompt_tokens: int = 2, seed: int | None = None, **settings) -> Sampler:
    return Sampler(SamplingSettings(**settings), prompt_tokens, EOS, "cpu", seed)


def picks(of: Sampler, count: int, ids=PROMPT) -> list[int]:
    return [pick(of, LOGITS, ids)[0] for _ in range(count)]


def filtered(temperature=1.0, top_k=None, top_p=1.0, min_p=0.0) -> list[float]:
    """What to sample from, by the definitions: top_k, then top_p, then min_p of what is left."""

    def probabilities(kept: list[int]) -> dict[int, float]:
        weights = {i: 2.718281828459045 ** (LOGITS[0, i].item() / temperature) for i in kept}
        return {i: weight / sum(weights.values()) for i, weight in weights.items()}

    ranked = sorted(range(LOGITS.shape[1]), key=lambda i: -LOGITS[0, i])[:top_k]
    kept, reached = [], 0.0
    for i in ranked:
        if reached < top_p:  # the one that crosses top_p is kept
            kept.append(i)
        reached += probabilities(ranked)[i]
    best = max(probabilities(kept).values())
    kept = [i for i in kept if probabilities(kept)[i] >= min_p * best]
    return [probabilities(kept).get(i, 0.0) for i in range(LOGITS.shape[1])]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.7},
        {"temperature": 1.0, "top_k": 3},
        {"temperature": 1.0, "top_p": 0.8},
        {"temperature": 1.0, "min_p": 0.3},
        {"temperature": 1.5, "top_k": 5, "top_p": 0.85, "min_p": 0.45},
    ],
    ids=str,
)
def test_tokens_are_picked_as_often_as_the_filtered_distribution_says(settings):
    count = 4000
    seen = torch.tensor(picks(sampler(**settings), count)).bincount(minlength=LOGITS.shape[1]) / count
    expected = torch.tensor(filtered(**settings))
    assert not (seen > 0)[expected == 0].any() and (seen > 0)[expected > 0.01].all()
    torch.testing.assert_close(seen, expected, atol=0.03, rtol=0)  # 4 standard deviations


def test_the_same_seed_picks_the_same_tokens_and_another_seed_others():
    first = picks(sampler(temperature=1.0, seed=5), 50)
    assert picks(sampler(temperature=1.0, seed=5), 50) == first
    assert picks(sampler(temperature=1.0, seed=6), 50) != first


def test_a_lane_without_a_seed_of_its_own_takes_the_settings_seed():
    settings = SamplingSettings(temperature=1.0, seed=5)
    assert picks(Sampler(settings, 2, EOS, "cpu"), 50) == picks(sampler(temperature=1.0, seed=5), 50)


def test_other_lanes_and_the_global_seed_change_no_pick():
    alone = picks(sampler(temperature=1.0), 20)
    lane, neighbour = sampler(temperature=1.0), sampler(temperature=1.0, seed=9)
    beside = []
    for _ in range(20):
        torch.manual_seed(0)
        picks(neighbour, 1)
        beside += picks(lane, 1)
    assert beside == alone


def test_temperature_zero_picks_the_most_probable_token_always():
    assert picks(sampler(temperature=0, top_k=5, top_p=0.5), 10) == [0] * 10


def test_the_repetition_penalty_leaves_the_prompt_alone():
    greedy = sampler(repetition_penalty=4.0)
    assert picks(greedy, 1, ids=torch.tensor([[0, 1]])) == [0]  # written in the prompt only
    assert picks(greedy, 1, ids=torch.tensor([[0, 1, 0]])) == [1]  # 2.0 / 4 is below 1.5
    assert picks(greedy, 1, ids=torch.tensor([[0, 1, 0, 1]])) == [2]


def test_min_new_tokens_keeps_every_eos_away_until_then():
    lane = sampler(min_new_tokens=2)
    written = [torch.tensor([[0, 1] + [4] * n]) for n in range(3)]
    assert [picks(lane, 1, ids=ids)[0] for ids in written] == [1, 1, 0]
    hot = sampler(min_new_tokens=2, temperature=2.0)
    assert set(picks(hot, 300)).isdisjoint(EOS)


def test_ignore_eos_never_picks_one():
    long_after = torch.tensor([[0, 1] + [4] * 50])
    assert set(picks(sampler(ignore_eos=True, temperature=2.0), 300, ids=long_after)).isdisjoint(EOS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logprob_is_the_models_own_whatever_was_filtered(dtype):
    logits = LOGITS.to(dtype)
    lane = sampler(temperature=0.5, top_k=2, repetition_penalty=1.3, ignore_eos=True)
    token_id, logprob = pick(lane, logits, torch.tensor([[0, 1, 2]]))
    assert logprob == pytest.approx(float(torch.log_softmax(logits.float(), -1)[0, token_id]), abs=1e-6)


def test_picking_leaves_the_logits_as_they_were():
    logits = LOGITS.clone()
    lane = sampler(temperature=0.5, top_k=2, top_p=0.9, min_p=0.1, repetition_penalty=2.0, ignore_eos=True)
    pick(lane, logits, torch.tensor([[0, 1, 2]]))
    assert torch.equal(logits, LOGITS)


def wide(seed: int, spread: float) -> torch.Tensor:
    """[1, 3000], more than are looked at first."""
    return torch.randn(1, 3000, generator=torch.Generator().manual_seed(seed)) * spread


@pytest.mark.parametrize("spread", [0.0, 0.1, 1.0, 3.0, 20.0])
@pytest.mark.parametrize(
    "cut", [{"top_p": 0.5}, {"top_p": 0.95}, {"min_p": 0.1}, {"top_p": 0.9, "min_p": 0.05}], ids=str
)
def test_what_is_cut_off_is_what_transformers_cuts_off(cut, spread):
    """However few the likeliest hold; of equal shares any may be the one that crosses top_p."""
    from transformers import MinPLogitsWarper, TopPLogitsWarper

    scores = wide(1, spread)
    expected = scores
    if "top_p" in cut:
        expected = TopPLogitsWarper(cut["top_p"])(None, expected)
    if "min_p" in cut:
        expected = MinPLogitsWarper(cut["min_p"])(None, expected)
    shares, at = Cut(temperature=1.0, **cut).candidates(scores)
    got = torch.zeros_like(scores).scatter(1, at, (shares / shares.sum()).float())
    if spread:
        torch.testing.assert_close(got, expected.softmax(-1), atol=1e-6, rtol=1e-4)
    else:
        assert abs(int((got > 0).sum()) - int(expected.isfinite().sum())) <= 1


def test_a_vocabulary_whose_likeliest_hold_enough_is_not_sorted(monkeypatch):
    monkeypatch.setattr(torch.Tensor, "sort", None)
    for cut in ({"top_p": 0.95}, {"min_p": 0.1}, {"top_k": 50, "top_p": 0.9}, {}):
        pick(sampler(temperature=1.0, **cut), wide(1, 5.0), PROMPT)


def test_a_token_without_a_share_is_never_drawn():
    """Whatever chance says; the shares before and after it are none as well."""
    scores = torch.full((1, 50), -torch.inf)
    scores[0, [7, 31]] = 0.0
    lane = sampler(temperature=1.0)
    assert {pick(lane, scores, PROMPT)[0] for _ in range(200)} == {7, 31}


def test_an_end_that_the_model_has_no_number_for_is_no_error():
    of = Sampler(SamplingSettings(temperature=0, ignore_eos=True), 2, (0, 151_329), "cpu", None)
    assert picks(of, 1) == [1], "0 is forbidden, and 1 the next"


WAYS = [
    {"temperature": 0.0},
    {"temperature": 0.7, "top_k": 50, "top_p": 0.95},
    {"temperature": 1.0, "top_k": 5, "repetition_penalty": 1.3},
    {"temperature": 1.0},
    {"temperature": 0.9, "top_p": 0.95},
    {"temperature": 1.5, "min_p": 0.05, "ignore_eos": True},
]


@pytest.mark.parametrize("lanes", [1, 2, 8])
@pytest.mark.parametrize("alike", [True, False])
def test_lanes_that_are_picked_together_get_what_each_gets_alone(lanes, alike):
    """Bit for bit, whatever the others ask for; some rows have no numbers."""
    for first in range(len(WAYS)):
        ways = [WAYS[(first + (0 if alike else lane)) % len(WAYS)] for lane in range(lanes)]
        alone, beside = ([sampler(seed=lane, **way) for lane, way in enumerate(ways)] for _ in range(2))
        for turn in range(6):
            logits = [wide(10 * turn + lane, spread=0.1 + 3 * (lane % 3)) for lane in range(lanes)]
            if turn == 5:
                logits[0][0, 9] = torch.nan
            changes = [Change((5,), 0.4) if turn == 3 and lane % 2 else Change() for lane in range(lanes)]
            asked = list(zip(logits, [PROMPT] * lanes, changes, strict=True))
            together = pick_all([one.ask(*of) for one, of in zip(beside, asked, strict=True)])
            told = [[float(number) for number in one] for one in together]
            expected = [pick(one, *of) for one, of in zip(alone, asked, strict=True)]
            torch.testing.assert_close(
                torch.tensor(told, dtype=torch.float64),
                torch.tensor(expected, dtype=torch.float64),
                rtol=0,
                atol=0,
                equal_nan=True,
            )


def test_what_was_picked_before_is_told_as_the_model_finds_it():
    known = Asked(LOGITS, LOGITS, known=torch.tensor([[4]]))
    fresh = sampler(temperature=0.0).ask(LOGITS, PROMPT)
    rows = [(int(token_id), float(logprob)) for token_id, logprob in pick_all([fresh, known])]
    assert [token_id for token_id, _ in rows] == [0, 4]
    assert rows[1][1] == pytest.approx(float(LOGITS.log_softmax(-1)[0, 4]), abs=1e-6)


def test_numbers_drawn_at_once_are_those_that_come_one_by_one():
    """Also behind a state that was taken between two of them."""
    one_by_one = torch.Generator().manual_seed(3)
    expected = [float(torch.rand(1, dtype=torch.float64, generator=one_by_one)) for _ in range(3 * DRAWS)]
    draws = Draws("cpu", 3)
    drawn = [draws.next() for _ in range(DRAWS + 7)]
    restored = Draws("cpu", 4)
    restored.next()
    restored.restore(draws.state())
    assert drawn + [restored.next() for _ in range(2 * DRAWS - 7)] == expected
    assert [draws.next() for _ in range(DRAWS)] == expected[len(drawn) :][:DRAWS]
