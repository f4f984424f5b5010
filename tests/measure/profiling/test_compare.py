"""By how many percent something became worse, against the plain formula, and where a threshold lies."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.measure.profiling.compare import compare, worse_percent
from scope_cli.measure.profiling.report import change_table
from tests.helpers.results import made_up

AMOUNTS = st.integers(1, 10**12)


@given(AMOUNTS, AMOUNTS, st.booleans())
def test_percent_is_of_what_was_before(before, after, more_is_better):
    lost, gained = (before - after, 0) if after < before else (0, after - before)
    worse = 100 * Fraction(lost if more_is_better else gained, before)
    better = 100 * Fraction(gained if more_is_better else lost, before)
    assert worse_percent(before, after, more_is_better) == pytest.approx(float(worse - better), abs=1e-9)


@pytest.mark.parametrize(
    ("before", "after", "more_is_better", "worse"),
    [
        (40, 20, True, 50.0),  # half as fast
        (43.6, 56.7, True, -30.0459),
        (100, 150, False, 50.0),
        (100, 50, False, -50.0),
        (0, 0, False, 0.0),
        (0, 5, False, float("inf")),
        (0, 5, True, float("-inf")),
        (5, 0, True, 100.0),
    ],
)
def test_some_that_everybody_can_check(before, after, more_is_better, worse):
    assert worse_percent(before, after, more_is_better) == pytest.approx(worse, abs=1e-4)


def slower(percent):
    one = made_up()
    speed = one.speed.__class__(300.0, 10.0 * (1 - percent / 100), [1], [1.0])
    return one.__class__(**{**vars(one), "speed": speed})


@given(st.floats(0, 60), st.integers(0, 50))
def test_a_threshold_is_what_may_be_lost(fall, allowed):
    found = compare([made_up()], [slower(fall)], 1.0, allowed)
    (speed,) = [one for one in found.changes if one.figure == "decode_tokens_per_s"]
    assert speed.worse_percent == pytest.approx(fall, abs=1e-9)
    if abs(fall - allowed) > 1e-6:
        assert speed.regression == (fall > allowed)
    assert found.worse == speed.regression


def test_a_table_has_units_and_no_raw_bytes():
    table = change_table(compare([made_up()], [slower(50)], 1.0, 10.0).changes, everything=True)
    assert "6.00 MiB" in table and "10.0 tokens/s" in table and "50.0% worse" in table
    assert "6,291,456" not in table and "_" not in table
