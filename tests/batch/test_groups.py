"""Rows that share a rectangle waste at most a quarter of it, and all of them are in one."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.batch.fit import MOST_LANES, Memory, check_weights, choose_lanes, even
from scope_cli.batch.groups import Demand, Group, alike_together, form_groups, hashes_of
from scope_cli.cache.shape import CacheShape
from scope_cli.engine.chunks import chunk_ends
from scope_cli.errors import ModelError
from scope_cli.geometry import Geometry, LayerGeometry
from scope_cli.models.target import Target

GEOMETRY = Geometry((LayerGeometry("full", 4, 2, 8),) * 2, context=8192, hidden=32, vocab=260)
BYTES = 4


# Nothing but the cache could be smaller.
TARGET = Target(SimpleNamespace(geometry=GEOMETRY), "cpu", "float32", "int4")


def chosen(group, lanes, memory, target=TARGET):
    return choose_lanes(group, lanes, memory, target)


def demand(number, prompt, evictable=100, alone=False):
    shape = CacheShape(1, (prompt, prompt), evictable, prompt + evictable)
    return Demand(number, prompt, shape, evictable, staging_bytes=prompt, alone=alone)


def groups_of(*demands, **more):
    return form_groups(demands, GEOMETRY, BYTES, **more)


def numbers(groups):
    return [[row.number for row in rows] for _, rows in groups]


def slots(shape):
    return sum(shape.layer_slots(index, layer) for index, layer in enumerate(GEOMETRY.layers))


demands = st.lists(
    st.tuples(st.integers(1, 5000), st.integers(1, 5000)), min_size=1, max_size=40
).map(lambda sizes: [demand(number, *size) for number, size in enumerate(sizes)])  # fmt: skip


@given(demands)
def test_every_row_fits_its_rectangle_and_leaves_at_most_a_quarter_of_its_lane(rows):
    groups = groups_of(*rows)
    assert sorted(number for some in numbers(groups) for number in some) == list(range(len(rows)))
    for group, members in groups:
        assert group.rows == len(members)
        for row in members:
            own = row.shape.cache_bytes(GEOMETRY, BYTES)
            assert 0.75 * group.lane_bytes <= own <= group.lane_bytes
            assert all(map(int.__le__, row.shape.prompt_slots, group.shape.prompt_slots))
            assert row.shape.evictable <= group.shape.evictable and row.shape.context <= group.shape.context
        assert group.padding_bytes <= 0.25 * group.cache_bytes


@given(demands, st.randoms())
def test_groups_depend_on_the_rows_and_not_on_how_they_are_listed(rows, random):
    shuffled = random.sample(rows, len(rows))
    assert groups_of(*shuffled) == groups_of(*rows)


def test_lengths_that_differ_too_much_get_rectangles_of_their_own():
    """Seven prompts of 300 tokens and one of 7,000 would take four times what they need together."""
    rows = [demand(number, 300) for number in range(7)] + [demand(7, 7000)]
    assert numbers(groups_of(*rows)) == [[7], list(range(7))]


def test_short_prompts_of_any_length_share_when_the_output_is_most_of_the_lane():
    assert len(groups_of(*(demand(number, 20 * (number + 1), 2000) for number in range(10)))) == 1


def test_the_longest_come_first_or_the_order_of_the_inputs_holds():
    rows = [demand(0, 100), demand(1, 5000), demand(2, 165), demand(3, 4900)]
    assert numbers(groups_of(*rows)) == [[1, 3], [2, 0]]
    assert numbers(groups_of(*rows, order="input")) == [[0, 2], [1, 3]]


def test_numbers_go_on_after_the_groups_that_are_there():
    assert [group.number for group, _ in groups_of(demand(0, 10), demand(1, 1000), first=3)] == [3, 4]


@given(demands, st.lists(st.booleans(), min_size=40, max_size=40))
def test_rows_share_a_rectangle_only_where_rope_has_the_same_factors(rows, sides):
    rows = [
        replace(row, shape=replace(row.shape, beyond=side)) for row, side in zip(rows, sides, strict=False)
    ]
    groups = groups_of(*rows)
    for group, members in groups:
        assert {row.shape.beyond for row in members} == {group.shape.beyond}
    assert sorted(number for some in numbers(groups) for number in some) == list(range(len(rows)))


def test_a_prompt_that_needs_buffers_of_its_own_size_is_alone():
    groups = groups_of(demand(0, 100, alone=True), demand(1, 100, alone=True), demand(2, 100))
    assert [group.alone for group, _ in groups] == [True, True, False]
    memory = Memory(2**30, 0)
    assert chosen(groups[0][0], 8, memory).lanes == 1


def test_padding_is_what_the_rectangle_has_and_its_rows_do_not_need():
    (group, rows), *_ = groups_of(demand(0, 100), demand(1, 80))
    needed = [row.shape.cache_bytes(GEOMETRY, BYTES) for row in rows]
    assert group.with_lanes(2).padding_bytes == 2 * group.lane_bytes - sum(needed)


def test_a_group_comes_back_from_the_ledger_as_it_was():
    (group, _), *_ = groups_of(demand(0, 100), demand(1, 80))
    assert Group.of(group.as_dict()) == group


# Lanes


def group_of(rows=20, lane_bytes=1000, staging=0):
    (group, _), *_ = groups_of(demand(0, 100))
    return replace(group, rows=rows, lane_bytes=lane_bytes, staging_bytes=staging)


@given(
    st.integers(0, 200_000), st.integers(0, 50_000), st.integers(0, 20_000), st.integers(0, 900),
    st.integers(0, 5000),
)  # fmt: skip
def test_the_lanes_that_fit_are_the_most_that_do(free, weights, reading, step, staging):
    memory, group = Memory(free, weights, reading, step), group_of(staging=staging)
    fit = memory.lanes_that_fit(group)
    tried = [lanes for lanes in range(1, 300) if memory.planned(group.with_lanes(lanes)) <= free]
    assert fit == max(tried, default=0)


def test_auto_takes_what_fits_but_no_more_than_there_are_rows_and_no_crowd():
    memory = Memory(free_bytes=10_500, weight_bytes=2000)
    assert chosen(group_of(), None, memory).lanes == 8
    assert chosen(group_of(rows=3), None, memory).lanes == 3
    assert chosen(group_of(rows=300), None, Memory(2**40, 0)).lanes == MOST_LANES


@pytest.mark.parametrize(
    ("fit", "rows", "lanes"), [(7, 99, 4), (11, 99, 8), (13, 99, 12), (40, 6, 4), (4, 5, 4)]
)
def test_auto_takes_no_number_with_which_a_row_shows_in_its_text(fit, rows, lanes):
    """Products of 5 to 7 or 9 to 11 rows may round by the row; a number that was asked for stays as it is."""
    memory = Memory(free_bytes=1000 * fit, weight_bytes=0)
    assert chosen(group_of(rows=rows), None, memory).lanes == lanes
    asked = min(fit, rows)
    assert chosen(group_of(rows=rows), asked, memory).lanes == asked
    assert [even(most) for most in range(1, 14)] == [1, 2, 3, 4, 4, 4, 4, 8, 8, 8, 8, 12, 12]


def test_lanes_that_were_asked_for_and_do_not_fit_are_refused_with_the_number_that_does():
    memory = Memory(free_bytes=10_500, weight_bytes=2000)
    assert chosen(group_of(), 8, memory).lanes == 8
    with pytest.raises(ModelError, match="9 lanes of 1000 B take") as refused:
        chosen(group_of(), 9, memory)
    assert refused.value.hint == "--lanes 8 fits; try a smaller --budget, --max-new-tokens or model"
    with pytest.raises(ModelError, match="1 lane of"):
        chosen(group_of(), None, Memory(100, 2000))


def test_lanes_that_do_not_fit_are_told_what_else_would():
    """As a run of one text is told, from the same account to the byte."""
    (group, _), *_ = groups_of(demand(0, 100))
    shape = SimpleNamespace(geometry=GEOMETRY, weight_bytes=lambda dtype, load_in: 500)
    target = Target(shape, "cpu", "float32")
    group, memory = replace(group, rows=9), Memory(0, weight_bytes=10**6, reading_bytes=30, step_bytes=7)
    run = memory.needs(group.with_lanes(9), target)
    assert run.total == memory.planned(group.with_lanes(9))
    saved = run.cache - run.in_int8
    assert saved > group.lane_bytes + 7
    for short_of, told in (
        (1, "--lanes 8 fits; with --kv int8 it takes about"),
        (saved, f"--lanes {9 - -(-saved // (group.lane_bytes + 7))} fits; with --kv int8 it takes about"),
        (saved + 1, "fits; with --load-in int4 it takes about"),
    ):
        with pytest.raises(ModelError) as refused:
            chosen(group, 9, replace(memory, free_bytes=run.total - short_of), target)
        assert told in refused.value.hint
    with pytest.raises(ModelError) as refused:
        chosen(group, None, replace(memory, free_bytes=memory.planned(group.with_lanes(1)) - 1), target)
    assert refused.value.hint.startswith("with --kv int8 it takes about")


@pytest.mark.parametrize(("weights", "loading"), [(2000, 0), (500, 2000)])
def test_weights_are_refused_when_a_byte_is_missing(weights, loading):
    shape = SimpleNamespace(weight_bytes=lambda dtype, load_in: 100)
    target = Target(shape, "cpu", "float32", stored_bytes=weights, loading_bytes=loading)
    opened = SimpleNamespace(name="tiny", target=target)
    check_weights(opened, 2000)
    with pytest.raises(ModelError, match=r"tiny takes 1\.95 KiB, 1\.95 KiB are free") as refused:
        check_weights(opened, 1999)
    assert refused.value.hint.startswith("try a smaller model" if loading else "with --load-in int4 it takes")


def test_what_was_not_measured_takes_nothing():
    assert Memory(free_bytes=10, weight_bytes=4).planned(group_of(lane_bytes=3).with_lanes(2)) == 10


def test_of_rows_whose_slots_are_rounded_to_the_same_the_longest_comes_first():
    assert numbers(groups_of(demand(0, 97), demand(1, 99), demand(2, 98), demand(3, 99))) == [[1, 3, 2, 0]]


@given(st.lists(st.lists(st.integers(0, 2), max_size=14), max_size=12))
def test_rows_that_begin_alike_stand_together_in_the_order_of_the_first(prompts):
    """Oracle: every beginning in whole chunks of three, with something left to read, compared as it is."""
    rows = [
        replace(demand(number, len(ids)), begins=tuple(hashes_of(ids, chunk_ends(len(ids), 3, "cpu"))))
        for number, ids in enumerate(prompts)
    ]
    turns = [row.number for row in alike_together(rows)]
    assert sorted(turns) == list(range(len(prompts)))
    for ids in prompts:
        for end in range(3, len(ids), 3):
            alike = [n for n, other in enumerate(prompts) if other[:end] == ids[:end] and len(other) > end]
            places = sorted(map(turns.index, alike))
            assert places == list(range(places[0], places[-1] + 1))
    leaders = [n for n, ids in enumerate(prompts) if not any(ids[:3] == one[:3] for one in prompts[:n])]
    assert [n for n in turns if n in leaders] == leaders
