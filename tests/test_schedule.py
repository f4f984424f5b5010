"""What the strategies allow, against the design's table, and the bounds that the memory plan rests on."""

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scope_cli.profile import DecodeSettings
from scope_cli.schedule import Schedule


def walk(schedule, steps):
    """Held after each step, the current token included, before and after the eviction."""
    held = schedule.base
    for n in range(1, steps + 1):
        held += 1
        excess = schedule.excess(n, held)
        yield n, held, excess
        held -= excess


@st.composite
def schedules(draw):
    """Any that a profile can ask for, and a prompt."""
    strategy = draw(st.sampled_from(["full", "slide", "adaptive", "discontinuous", "rpc"]))
    budget = draw(st.integers(1, 40))
    unified, prompt = draw(st.booleans()), draw(st.integers(0, 50))
    settings = {
        "strategy": strategy,
        "budget": budget,
        "recent": draw(st.sampled_from(["auto", *range(1, budget + 1)])),
        "interval": draw(st.sampled_from(["auto", "discontinuous", *range(1, 81)])),
        "ratio": draw(st.integers(1, 6)),
        "protect_prompt": not unified,
        "sinks": draw(st.integers(0, 5)) if unified else 0,
        "total_budget": draw(st.one_of(st.none(), st.integers(1, 120))) if unified else None,
    }
    decode = DecodeSettings.model_validate(settings)
    assume(not list(decode.problems()))
    return decode, Schedule.of(decode, draw(st.integers(1, 200)), prompt)


@settings(max_examples=500)
@given(schedules())
def test_never_more_than_the_slots_that_were_planned(chosen):
    decode, schedule = chosen
    for n, held, excess in walk(schedule, schedule.planned - 1):
        assert held <= schedule.most_held
        if decode.strategy not in ("full", "rpc"):
            assert held <= max(schedule.base, schedule.total or schedule.base + decode.budget) + 1
        left = held - excess
        assert left >= min(held, schedule.recent + schedule.floor)
        limit = schedule.limit(n)
        assert limit is not None or not excess
        if limit is not None:
            assert left <= limit, "what is left is within the limit"
            assert bool(excess) == (held > limit)
    if decode.total_budget is not None and decode.strategy != "full":
        assert schedule.limit(1) == decode.total_budget


def test_slide_evicts_every_token_at_interval_1_and_every_64_by_default():
    every = Schedule.of(DecodeSettings(budget=100, recent=10, interval=1), 1000, 0)
    assert [n for n, _, excess in walk(every, 300) if excess] == list(range(101, 301))
    sometimes = Schedule.of(DecodeSettings(budget=100, recent=10), 1000, 0)
    assert [(n, excess) for n, _, excess in walk(sometimes, 300) if excess] == [
        (101, 64),
        (165, 64),
        (229, 64),
        (293, 64),
    ]


def test_adaptive_grows_from_recent_to_budget_over_the_planned_length():
    adaptive = Schedule.of(DecodeSettings(strategy="adaptive", budget=100, recent=20, interval=1), 420, 0)
    assert [adaptive.allowed(n) for n in (1, 20, 25, 220, 420, 1000)] == [20, 20, 21, 60, 100, 100]


def test_adaptive_has_no_limit_where_everything_fits():
    assert (
        Schedule.of(DecodeSettings(strategy="adaptive", budget=100, recent=20), 100, 0).allowed(100) is None
    )


def test_discontinuous_evicts_about_as_often_as_there_are_heavy_hitters():
    """The paper's 4K setting: 256 heavy hitters; in the first steps little may go, so it looks more often."""
    schedule = Schedule.of(DecodeSettings(strategy="discontinuous", budget=512, recent=256), 4096, 0)
    assert schedule.interval == 15  # (4096 - 256) / 256
    evicting = [n for n, _, excess in walk(schedule, 4095) if excess]
    assert 256 <= len(evicting) <= 256 + 15 * 4  # interval x its harmonic number
    late = [after - before for before, after in pairwise(evicting) if before > 1000]
    assert set(late) <= {15, 16, 17}


def test_any_strategy_can_look_as_seldom_as_discontinuous():
    slide = Schedule.of(DecodeSettings(budget=512, recent=256, interval="discontinuous"), 4096, 0)
    assert slide.interval == 15 and slide.allowed(300) == 512


def test_rpc_keeps_one_token_in_four_and_the_recent_ones():
    rpc = Schedule.of(DecodeSettings(strategy="rpc", recent=32, interval=128, ratio=4), 4000, 0)
    after = {n: held - excess for n, held, excess in walk(rpc, 3999) if excess}
    assert all(kept == 32 + n // 4 for n, kept in after.items())
    assert 20 <= len(after) <= 32
    assert max(held for _, held, _ in walk(rpc, 3999)) <= rpc.most_held < 1200


def test_a_total_budget_counts_the_prompt_and_lets_it_be_read_first():
    decode = DecodeSettings(budget=50, recent=8, interval=1, protect_prompt=False, sinks=4, total_budget=60)
    schedule = Schedule.of(decode, 500, 200)
    assert schedule.most_held == 201
    held = [held - excess for _, held, excess in walk(schedule, 20)]
    assert held == [60] * 20
