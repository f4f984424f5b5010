"""Attention over slots in C++ against the plain formula in float64; the same bits from every kind of CPU."""

import math

import pytest
import torch

from tests.helpers.attention_case import Case

WIDTHS = (8, 24, 64, 80, 96, 128, 256)
PAIRS = [
    ("float32", "float32"),
    ("bfloat16", "bfloat16"),
    ("int8", "int8"),
    ("int8", "int4"),
    ("int4", "int4"),
]


def cases(pair: tuple[str, str]) -> list[Case]:
    widths = [wide for wide in WIDTHS if "int4" not in pair or wide % 32 == 0]
    return [
        *(Case(wide, group, 300, pair) for wide in widths for group in range(1, 9)),
        *(Case(64, 3, slots, pair) for slots in (1, 31, 32, 33, 256, 257, 777)),
        *(Case(wide, 3, 300, pair, lanes=lanes) for wide in widths for lanes in (1, 8)),
        Case(64, 3, 777, pair, used=300),
        Case(64, 3, 300, pair, cap=2.0),
        Case(64, 3, 300, pair, sinks=True),
        *(
            Case(wide, 3, 300, pair, exact=exact, exact_form=form)
            for wide in widths
            for exact, form in ((1, "float32"), (64, "bfloat16"), (300, "float32"))
        ),
    ]


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_attention_is_the_plain_formula(native, pair):
    rounding = 5e-6 if "float" in pair[0] else 2e-4  # queries and weights have 16 bits beside codes
    for case in cases(pair):
        for got, expected in zip(case.attend(), case.expected(), strict=True):
            torch.testing.assert_close(got.double(), expected, atol=rounding, rtol=1e-5, msg=str(case))


@pytest.mark.parametrize("pair", PAIRS, ids="-".join)
def test_every_kind_of_instructions_and_number_of_threads_gives_the_same_bits(native, pair):
    for case in cases(pair):
        native.use("plain")
        expected = case.attend()
        for instructions in native.all_instructions():
            native.use(instructions)
            for threads in (1, 3):
                native.threads(threads)
                assert all(map(torch.equal, case.attend(), expected)), (case, instructions, threads)


def test_how_many_free_slots_are_read_changes_no_bit(native):
    case = Case(64, 3, 777, ("int8", "int8"), used=300)
    expected = case.attend()
    for used in (301, 320, 512, 777):
        case.used = used
        assert all(map(torch.equal, case.attend(), expected))


def test_a_number_that_is_none_is_seen(native):
    case = Case(64, 2, 64, ("float32", "float32"))
    case.keys.numbers[1, 0, int(case.held[1, 0].nonzero()[0])] = math.nan
    out, _ = case.attend()
    assert out[1, 0].isnan().all() and out[1, 1].isfinite().all() and out[0].isfinite().all()
