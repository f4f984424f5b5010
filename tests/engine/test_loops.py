"""The watch against an oracle that looks at every stretch of every period."""

from hypothesis import example, given
from hypothesis import strategies as st

from scope_cli.engine.loops import MOST, NGRAM, ExactWatch, LoopWatch, NearWatch
from scope_cli.events import Loop

SMALL = (5, 3, 6)  # max_period, min_copies, min_tokens


def is_loop(tail: list[int], limits: tuple[int, int, int]) -> bool:
    """Does the output end with enough copies of something?"""
    max_period, min_copies, min_tokens = limits
    for period in range(1, max_period + 1):
        length = max(min_copies * period, min_tokens)
        copies = tail[-length:]
        if len(tail) >= length and all(copies[i] == copies[i - period] for i in range(period, length)):
            return True
    return False


def longest_loop(ids: list[int], limits: tuple[int, int, int]) -> Loop | None:
    max_period, min_copies, min_tokens = limits
    found = []
    for period in range(1, max_period + 1):
        for start in range(len(ids)):
            end = start + period
            while end < len(ids) and ids[end] == ids[end - period]:
                end += 1
            if end <= len(ids) and end - start >= max(min_copies * period, min_tokens):
                found.append((end - start, start, -period))
    if not found:
        return None
    tokens, start, minus_period = max(found)
    return Loop(-minus_period, start, tokens, start + tokens == len(ids))


def watched(ids: list[int], *limits: int) -> tuple[list[bool], Loop | None]:
    watch = ExactWatch(*limits)
    return [watch.feed(token_id) is not None for token_id in ids], watch.longest()


pieces = st.tuples(st.lists(st.integers(0, 2), min_size=1, max_size=7), st.integers(1, 6))


@given(st.lists(pieces, max_size=5))
@example([([0], 6), ([1], 1), ([2], 6)])  # two of the same length: the later one
@example([([0, 1], 4), ([2], 1)])  # over before the end
def test_the_watch_agrees_with_a_slow_oracle_after_every_token(repeated):
    ids = [token_id for piece, copies in repeated for token_id in piece * copies]
    told, longest = watched(ids, *SMALL)
    assert told == [is_loop(ids[: n + 1], SMALL) for n in range(len(ids))]
    assert longest == longest_loop(ids, SMALL)


def test_a_loop_is_told_when_its_fourth_copy_is_complete():
    ids = [*range(1000, 1010), *(list(range(128)) * 5)]
    told, longest = watched(ids)
    assert told.index(True) == 10 + 4 * 128 - 1
    assert longest == Loop(period=128, start=10, tokens=5 * 128, to_the_end=True)


def test_short_periods_need_sixty_four_tokens():
    told, longest = watched([7] * 63 + [8])
    assert (any(told), longest) == (False, None)
    assert watched([7] * 64 + [8])[1] == Loop(period=1, start=0, tokens=64, to_the_end=False)


def test_a_period_longer_than_the_watch_is_no_loop():
    assert watched(list(range(129)) * 6)[1] is None


NEAR = (2, 9, 10, 2)  # first, last, min_tokens, weight


def near_loop(ids: list[int], limits: tuple[int, int, int, int]) -> Loop | None:
    """What the rule says of a whole output, by period, from what stands where."""
    first, last, min_tokens, weight = limits
    found = []
    for period in range(first, last + 1):
        saved = began = 0
        for n in range(1, len(ids) + 1):
            newest, before = ids[max(0, n - NGRAM) : n], ids[max(0, n - NGRAM - period) : max(0, n - period)]
            old = len(before) == NGRAM and newest == before
            if saved == 0:
                began = n - NGRAM
            saved = min(MOST, max(0, saved + (1 if old else -weight)))
        if ids and old and len(ids) - began >= max(2 * period, min_tokens):
            found.append((len(ids) - began, -period, began - period))
    if not found:
        return None
    repeated, minus_period, start = max(found)
    return Loop(-minus_period, start, repeated - minus_period, True, near=True)


varied = st.tuples(st.lists(st.integers(0, 3), min_size=4, max_size=9), st.integers(1, 6))


@given(st.lists(varied, max_size=4), st.lists(st.integers(0, 60), max_size=4))
def test_the_near_watch_agrees_with_a_slow_oracle_after_every_token(repeated, changed):
    ids = [token_id for piece, copies in repeated for token_id in piece * copies]
    for at in changed:
        ids[at : at + 1] = [9] * len(ids[at : at + 1])
    watch = NearWatch(*NEAR)
    assert [watch.feed(one) for one in ids] == [near_loop(ids[: n + 1], NEAR) for n in range(len(ids))]


@given(st.lists(varied, max_size=4), st.lists(st.integers(0, 60), max_size=6))
def test_more_than_the_share_of_a_near_loops_4_grams_are_old(repeated, changed):
    ids = [token_id for piece, copies in repeated for token_id in piece * copies]
    for at in changed:
        ids[at : at + 1] = [9] * len(ids[at : at + 1])
    watch, weight = NearWatch(*NEAR), NEAR[-1]
    for n, one in enumerate(ids, 1):
        if (loop := watch.feed(one)) is not None:
            second = loop.start + loop.period
            ends = range(second + NGRAM, n + 1)
            old = sum(
                ids[end - NGRAM : end] == ids[end - NGRAM - loop.period : end - loop.period] for end in ends
            )
            assert n - second >= max(2 * loop.period, NEAR[2])
            assert old / len(ends) > weight / (weight + 1)


def test_a_paragraph_with_another_number_in_each_copy_is_a_loop_after_its_third():
    paragraph = list(range(1000, 1130))
    ids = [token for copy in range(4) for token in [*paragraph[:40], copy, *paragraph[41:]]]
    watch = LoopWatch()
    loops = [watch.feed(one) for one in ids]
    assert loops.index(next(filter(None, loops))) == 3 * 130 - 1
    assert watch.longest() == Loop(130, 0, 4 * 130, True, near=True)
    assert not any(map(ExactWatch().feed, ids))


@given(st.lists(pieces, max_size=5))
def test_what_the_exact_rule_finds_stays_found(repeated):
    ids = [token_id for piece, copies in repeated for token_id in piece * copies * 12]
    both, exact = LoopWatch(), ExactWatch()
    for one in ids:
        loop, told = exact.feed(one), both.feed(one)
        assert loop is None or told == loop
    assert exact.longest() is None or both.longest() == exact.longest()


@given(st.lists(pieces, max_size=5), st.integers(1, 90))
def test_tokens_that_are_looked_at_together_tell_the_same_whenever_it_is_asked(repeated, every):
    ids = [token_id for piece, copies in repeated for token_id in piece * copies * 12]
    together, one_by_one = LoopWatch(), LoopWatch()
    for n, one in enumerate(ids, 1):
        together.note(one)
        one_by_one.feed(one)
        if n % every == 0 or n == len(ids):
            assert together.longest() == one_by_one.longest()


def test_however_long_a_loop_was_sixteen_new_tokens_and_some_end_it():
    watch, block = NearWatch(), list(range(20))
    for token_id in block * 60:
        loop = watch.feed(token_id)
    assert loop is not None
    for token_id in range(100, 124):
        watch.feed(token_id)
    assert all(watch.feed(token_id) is None for token_id in block * 8), "two periods, but not 256 tokens"
