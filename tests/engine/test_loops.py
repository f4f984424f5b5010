"""The watch against an oracle that looks at every stretch of every period."""

from hypothesis import example, given
from hypothesis import strategies as st

from scope_cli.engine.loops import LoopWatch
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
    watch = LoopWatch(*limits)
    return [watch.feed(token_id) for token_id in ids], watch.longest()


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
