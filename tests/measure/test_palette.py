"""One policy, one colour; no colour twice in a picture while there are others."""

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scope_cli.measure.palette import COLOURS, POLICIES, policy_of, styles

NAMES = st.sampled_from(
    [
        *POLICIES,
        "default slide 128",
        "slide budget=64",
        "slide budget=128",
        "baselines/h2o",
        "my own",
        "theirs",
    ]
)


@pytest.mark.parametrize(
    ("name", "policy"),
    [
        ("default slide 128", "slide"), ("default 2048", "slide"), ("slide budget=64", "slide"),
        ("slide64", "slide"), ("default adaptive 128", "adaptive"), ("default full", "full"),
        ("dynamic", "full"),
        ("slide scorer=random budget=16", "random"), ("baselines/streamingllm budget=16", "streamingllm"),
        ("snapkv-decode", "snapkv-decode"),
    ],
)  # fmt: skip
def test_a_name_says_its_policy(name, policy):
    assert policy_of(name) == policy


@given(st.lists(NAMES, unique=True, max_size=len(COLOURS)))
def test_a_policy_has_its_colour_wherever_it_is_drawn(names):
    found = styles(names)
    for policy in POLICIES:
        of_it = [name for name in names if policy_of(name) == policy]
        if of_it:
            assert found[of_it[0]].colour == styles([policy])[policy].colour
    assert list(found) == names


@given(st.integers(1, 3 * len(COLOURS)))
def test_no_colour_twice_while_there_are_others_and_never_the_same_look(many):
    found = styles(f"slide budget={budget}" for budget in range(many)).values()
    assert len({one.colour for one in found}) == min(many, len(COLOURS))
    assert len({(one.colour, one.marker, str(one.dashes)) for one in found}) == many


def test_colours_are_far_apart_and_dark_enough_for_white_paper():
    def rgb(colour):
        return [int(colour[at : at + 2], 16) for at in (1, 3, 5)]

    for one, other in combinations(COLOURS, 2):
        assert sum((a - b) ** 2 for a, b in zip(rgb(one), rgb(other), strict=True)) > 60**2, (one, other)
    for colour in COLOURS:
        red, green, blue = rgb(colour)
        assert 0.299 * red + 0.587 * green + 0.114 * blue < 190, colour
