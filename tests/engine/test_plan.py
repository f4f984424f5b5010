"""Slots and bytes before anything is allocated, against sums written out."""

from dataclasses import replace
from math import prod

import pytest

from scope_cli.cache.shape import CacheShape, whole_steps
from scope_cli.engine.plan import plan_prompt, plan_run, shared_shape, tokens_of
from scope_cli.errors import UsageError
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.settings.load import LoadedProfile
from tests.helpers.plain import profile_of

FULL, WINDOW = LayerGeometry("full", 4, 2, 8), LayerGeometry("window", 4, 2, 8, window=100)
GEOMETRY = Geometry((FULL, WINDOW, FULL), context=1000, hidden=32, vocab=260)


def plan_of(prompt=100, geometry=GEOMETRY, typed=frozenset(), context=None, ring=1, memos=0, **more):
    profile = profile_of(
        {
            "decode": {"budget": 64, "recent": 16, **more.pop("decode", {})},
            "sampling": {"max_new_tokens": more.pop("new", 200)},
            "prefill": more.pop("prefill", {}),
            "model": {"context": context},
        }
    )
    assert not more
    return plan_run(LoadedProfile(profile, "test", typed), geometry, prompt, ring=ring, memos=memos)


@pytest.mark.parametrize(("slots", "whole"), [(0, 0), (1, 64), (63, 64), (64, 64), (65, 128), (129, 192)])
def test_slots_come_in_whole_steps(slots, whole):
    assert whole_steps(slots) == whole
    assert whole_steps(slots, 10) == next(ten for ten in range(0, 300, 10) if ten >= slots)


def test_a_shapes_bytes_are_those_of_its_buffers_one_by_one():
    shape = CacheShape(3, (70, 0, 5), evictable=65, context=300, ring=7, memos=2)
    assert [shape.most_held(index, layer) for index, layer in enumerate(GEOMETRY.layers)] == [135, 100, 70]
    slots = [192, 128, 128]
    assert [shape.layer_slots(index, layer) for index, layer in enumerate(GEOMETRY.layers)] == slots
    for index, layer in enumerate(GEOMETRY.layers):
        keys = values = 3 * 2 * slots[index] * 8 * 2
        bias, positions = 3 * 2 * slots[index] * 2, 3 * 2 * slots[index] * 4
        vacant = ring = memos = 0
        if layer.kind == "full":
            vacant, ring, memos = 3 * 2 * 65 * 4, 3 * 4 * 7 * 8 * 2, 2 * 3 * 2 * slots[index] * 4
        parts = keys + values + bias + positions + vacant + ring + memos
        assert shape.layer_bytes(index, layer, 2) == parts
    counters, query_positions = 4 * 3 * 8, 3 * 7 * 8
    layers = sum(shape.layer_bytes(index, layer, 2) for index, layer in enumerate(GEOMETRY.layers))
    assert shape.cache_bytes(GEOMETRY, 2) == counters + query_positions + layers
    assert replace(shape, context=30).most_held(1, WINDOW) == 30, "a text shorter than the window"


def test_a_run_is_planned_for_its_prompt_and_the_output_that_was_asked_for():
    plan = plan_of(100, new=200, ring=5, memos=2)
    assert plan.shape == CacheShape(1, (100, 0, 100), 65, context=300, ring=5, memos=2)
    assert (plan.prompt_tokens, plan.max_new_tokens, plan.notes) == (100, 200, ())
    assert not plan.ends_with_context and plan.starting_shape == plan.shape
    open_prompt = plan_of(100, decode={"protect_prompt": False, "sinks": 4})
    assert open_prompt.shape.prompt_slots == (0, 0, 0) and open_prompt.shape.evictable == 165


def test_the_output_fills_the_context_and_no_more():
    assert plan_of(999, new=1).max_new_tokens == 1 and not plan_of(999, new=1).ends_with_context
    exact, cut, rest = plan_of(100, new=900), plan_of(100, new=901), plan_of(100, new=None)
    assert [plan.max_new_tokens for plan in (exact, cut, rest)] == [900, 900, 900]
    assert [plan.ends_with_context for plan in (exact, cut, rest)] == [False, True, True]
    assert cut.notes == ("output cut from 901 to 900 tokens: all that the model's context leaves",)
    assert exact.notes == rest.notes == ()
    typed = frozenset({"sampling.max_new_tokens"})
    assert plan_of(100, new=900, typed=typed).max_new_tokens == 900
    with pytest.raises(UsageError, match="901 new tokens after a prompt of 100") as refused:
        plan_of(100, new=901, typed=typed)
    assert refused.value.hint == "at most --max-new-tokens 900 fits"


@pytest.mark.parametrize(("tokens", "told"), [(0, "is empty"), (1000, "has 1,000 tokens"), (1001, "1,001")])
def test_a_prompt_that_leaves_no_room_is_refused(tokens, told):
    with pytest.raises(UsageError, match=told):
        plan_of(tokens)


@pytest.mark.parametrize(
    ("prompt", "context", "beyond"), [(100, None, False), (101, None, True), (9, 900, True), (9, 300, False)]
)
def test_the_factors_of_rope_are_those_of_the_longest_text_that_may_come(prompt, context, beyond):
    """A context that was asked for decides by itself."""
    geometry = replace(GEOMETRY, context=context or 1000, switch=300, made_for=None)
    plan = plan_of(prompt, geometry, context=context, new=200)
    assert plan.shape.beyond == beyond
    assert ("more than 300" in plan.notes[0]) == beyond and ("up to 300" in plan.notes[0]) == (not beyond)


def test_what_a_plan_cannot_give_is_noted():
    windows = replace(GEOMETRY, layers=(WINDOW,) * 2)
    assert "nothing to govern" in plan_of(geometry=windows).notes[0]
    assert plan_of(geometry=windows, decode={"strategy": "full"}).notes == ()
    assert "leave the scorer nothing" in plan_of(decode={"interval": 60}).notes[0]
    assert plan_of(geometry=replace(GEOMETRY, made_for=500)).notes == (
        "a context of 1,000 tokens; the model was made for 500",
    )


def test_lanes_share_a_shape_in_which_each_of_their_runs_fits():
    plans = [plan_of(100, new=20), plan_of(300, new=200), plan_of(50, new=500)]
    shape = shared_shape(plans, 2)
    assert shape == CacheShape(2, (300, 0, 300), 65, context=550)


def test_runs_with_other_factors_of_rope_do_not_share():
    geometry = replace(GEOMETRY, switch=300)
    short, long = plan_of(50, geometry, new=200), plan_of(150, geometry, new=200)
    assert shared_shape([long, long], 2).beyond and not shared_shape([short, short], 2).beyond
    with pytest.raises(UsageError, match="other factors of RoPE"):
        shared_shape([short, long], 1)


SNAPKV = {"method": "snapkv", "budget": 40, "window": 8}


def test_a_compressed_prompt_is_staged_whole_and_the_largest_counts_once():
    plan = plan_of(200, prefill=SNAPKV)
    assert plan.prompt.kept == (40, 0, 40) and plan.prompt.staged and not plan.prompt.late
    method, ring = plan.prompt.method, plan.prompt.ring
    memos = 4 * sum(prod(size) for size in method.memos(FULL, 200).values())
    staged = 2 * (200 * 2 * 2 * 8 * 4 + ring * 4 * 8 * 4 + memos)
    assert plan.prompt.staging_bytes(GEOMETRY, 4) == staged


def test_a_prompt_that_fits_its_budget_or_its_window_is_kept_whole():
    for tokens, staged in ((8, False), (40, False), (41, True)):
        prompt = plan_of(tokens, prefill=SNAPKV).prompt
        assert prompt.kept == (min(tokens, 40), 0, min(tokens, 40)) and prompt.staged == staged
        assert bool(prompt.staging_bytes(GEOMETRY, 4)) == staged


@pytest.mark.parametrize("wrap", [{"name": "mass", "tau": 0.9}, "think"])
def test_a_wrapper_gets_to_see_a_prompt_that_is_longer_than_the_window(wrap):
    """Though it fits the budget: `mass` finds its own, `think` changes what is kept."""
    settings = {"method": "snapkv", "window": 8, "wrap": [wrap]}
    if wrap == "think":
        settings["budget"] = 40
    for tokens, staged in ((1, False), (7, False), (8, False), (9, True), (30, True)):
        assert plan_of(tokens, prefill=settings).prompt.staged == staged


def test_a_plan_draws_where_chance_decides_what_stays_of_the_prompt():
    by_chance = {**SNAPKV, "method": "random"}
    for settings, tokens, draws in ((by_chance, 200, True), (by_chance, 40, False), (SNAPKV, 200, False)):
        assert plan_of(tokens, prefill=settings).prompt.draws == draws


def test_a_wrapper_that_frees_nothing_is_noted_where_it_does_something():
    think, adakv = ({**SNAPKV, "wrap": [name]} for name in ("think", "adakv"))
    assert plan_of(200, prefill=think).notes == (
        "think: pruned key channels are stored as zeros, which frees no memory",
    )
    assert plan_of(8, prefill=think).notes == plan_of(200, prefill=adakv).notes == ()


def test_heads_that_share_a_budget_need_one_lane_and_the_largest_counts():
    late = plan_of(200, prefill={**SNAPKV, "wrap": ["adakv"]})
    assert late.prompt.late and late.starting_shape.prompt_slots == (0, 0, 0)
    assert late.shape.prompt_slots[0] >= 40 and late.shape.prompt_slots[1] == 0
    assert shared_shape([late], 1).prompt_slots == (0, 0, 0)
    with pytest.raises(UsageError, match="buffers of its own size"):
        shared_shape([late], 2)
    assert not plan_prompt(profile_of({"prefill": SNAPKV}).prefill, GEOMETRY, 200).late


@pytest.mark.parametrize(
    ("budget", "prompt", "tokens"),
    [
        (50, 200, 50),
        (50, 30, 30),
        ("25%", 200, 50),
        ("25%", 101, 25),
        ("1%", 200, 8),
        ("50%", 4, 4),
        ("100%", 9, 9),
    ],
)
def test_a_budget_is_tokens_or_a_share_of_the_prompt_and_never_less_than_the_window(budget, prompt, tokens):
    assert tokens_of(budget, prompt, 8) == tokens
