"""What the strategies allow, against the design's table, and the bounds that the memory plan rests on."""

from itertools import pairwise

from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scope_cli.settings.policy import DecodeSettings
from scope_cli.settings.schedules import nothing_to_choose, schedule_of


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
    return decode, schedule_of(decode, draw(st.integers(1, 200)), prompt)


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


def test_slide_evicts_every_token_at_interval_1_and_at_most_every_64_by_default():
    every = schedule_of(DecodeSettings(budget=100, recent=10, interval=1), 1000, 0)
    assert [n for n, _, excess in walk(every, 300) if excess] == list(range(101, 301))
    sometimes = schedule_of(DecodeSettings(budget=138, recent=10), 1000, 0)
    at = [(n, excess) for n, _, excess in walk(sometimes, 300) if excess]
    assert at == [(139, 64), (203, 64), (267, 64)]
    small = schedule_of(DecodeSettings(budget=20), 1000, 0)
    at = [(n, excess) for n, _, excess in walk(small, 40) if excess]
    assert at == [(21, 5), (26, 5), (31, 5), (36, 5)], "half of the ten that are not recent"


def test_adaptive_grows_from_recent_to_budget_over_the_planned_length():
    adaptive = schedule_of(DecodeSettings(strategy="adaptive", budget=100, recent=20, interval=1), 420, 0)
    assert [adaptive.allowed(n) for n in (1, 20, 25, 220, 420, 1000)] == [20, 20, 21, 60, 100, 100]


def test_adaptive_has_no_limit_where_everything_fits():
    assert (
        schedule_of(DecodeSettings(strategy="adaptive", budget=100, recent=20), 100, 0).allowed(100) is None
    )


def test_discontinuous_evicts_about_as_often_as_there_are_heavy_hitters():
    """The paper's 4K setting: 256 heavy hitters; in the first steps little may go, so it looks more often."""
    schedule = schedule_of(DecodeSettings(strategy="discontinuous", budget=512, recent=256), 4096, 0)
    assert schedule.interval == 15  # (4096 - 256) / 256
    evicting = [n for n, _, excess in walk(schedule, 4095) if excess]
    assert 256 <= len(evicting) <= 256 + 15 * 4  # interval x its harmonic number
    late = [after - before for before, after in pairwise(evicting) if before > 1000]
    assert set(late) <= {15, 16, 17}


def test_any_strategy_can_look_as_seldom_as_discontinuous():
    slide = schedule_of(DecodeSettings(budget=512, recent=256, interval="discontinuous"), 4096, 0)
    assert slide.interval == 15 and slide.allowed(300) == 512


def test_rpc_keeps_one_token_in_four_and_the_recent_ones():
    rpc = schedule_of(DecodeSettings(strategy="rpc", recent=32, interval=128, ratio=4), 4000, 0)
    after = {n: held - excess for n, held, excess in walk(rpc, 3999) if excess}
    assert all(kept == 32 + n // 4 for n, kept in after.items())
    assert 20 <= len(after) <= 32
    assert max(held for _, held, _ in walk(rpc, 3999)) <= rpc.most_held < 1200


def test_a_total_budget_counts_the_prompt_and_lets_it_be_read_first():
    decode = DecodeSettings(budget=50, recent=8, interval=1, protect_prompt=False, sinks=4, total_budget=60)
    schedule = schedule_of(decode, 500, 200)
    assert schedule.most_held == 201
    held = [held - excess for _, held, excess in walk(schedule, 20)]
    assert held == [60] * 20


@given(schedules())
def test_auto_leaves_room_to_choose_at_every_budget_from_2_on(chosen):
    decode, schedule = chosen
    decode = decode.model_copy(update={"recent": "auto", "interval": "auto"})
    total = decode.budget if decode.total_budget is None else decode.total_budget - decode.sinks
    assume(not list(decode.problems()) and min(decode.budget, total) >= 2)
    if decode.strategy in ("slide", "adaptive"):
        schedule = schedule_of(decode, 1000, schedule.base)
        if decode.strategy == "adaptive" and decode.total_budget is None:
            assume(decode.budget > 2)  # the last place is allowed when nothing is written any more
        assert schedule.kept_by_score >= 1
        assert nothing_to_choose(decode, 1000, schedule.base) is None
        assert schedule.interval == max(1, min(64, schedule.room // 2))
        *_, (held, excess) = [(held, excess) for _, held, excess in walk(schedule, 999) if excess]
        assert held - excess > schedule.recent + schedule.floor, "not only the newest stay"


def test_an_interval_that_leaves_nothing_to_choose_is_told():
    slide = {"budget": 64, "recent": 32}
    told = "32 recent tokens and an interval of 64 leave the scorer nothing to choose; interval=16 would"
    assert nothing_to_choose(DecodeSettings(**slide, interval=64), 1000) == told
    assert nothing_to_choose(DecodeSettings(**slide, interval=33), None) == told.replace("64", "33")
    for silent in (
        DecodeSettings(**slide),
        DecodeSettings(**slide, interval=32),
        DecodeSettings(**slide, interval=64, strategy="full"),
        DecodeSettings(**slide, interval=64, scorer="recency"),
        DecodeSettings(**slide, interval=64, protect_prompt=False),
    ):
        assert nothing_to_choose(silent, 1000) is None
    assert nothing_to_choose(DecodeSettings(**slide, interval=64), 65) is None, "nothing is evicted"
    assert nothing_to_choose(DecodeSettings(**slide, interval=64), 66) == told
    assert nothing_to_choose(DecodeSettings(**slide, interval=64, strategy="adaptive"), 65) == told
    alone = DecodeSettings(budget=8, recent=8)
    assert nothing_to_choose(alone, 1000) == (
        "8 recent tokens and an interval of 1 leave the scorer nothing to choose; a larger budget would"
    )
    total = DecodeSettings(**slide, interval=64, protect_prompt=False, total_budget=40, sinks=4)
    assert nothing_to_choose(total, 1000, 100) == told.replace("interval=16", "interval=2")
    paper = DecodeSettings(budget=64, strategy="discontinuous")
    assert nothing_to_choose(paper, None) is None
    assert "an interval of 127 leave" in nothing_to_choose(paper, 4096)
    assert nothing_to_choose(paper, 500) is None


@given(schedules())
def test_what_is_held_after_each_token_is_what_walking_there_leaves(chosen):
    _, schedule = chosen
    walked = [held - excess for _, held, excess in walk(schedule, schedule.planned)]
    assert schedule.held(schedule.planned) == [schedule.base, *walked]
