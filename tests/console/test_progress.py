"""The time that is left, by a clock of our own."""

import pytest

from scope_cli.console.progress import Progress


def test_what_is_left_is_what_the_rest_would_take_at_the_same_pace():
    now = [100.0]
    progress = Progress(4, clock=lambda: now[0])
    assert progress.left() == "", "nothing is known yet"
    now[0] += 30
    progress.one_more()
    assert progress.left() == "about 1:30 left"
    assert progress.left(", {} in all") == ", about 1:30 in all"
    progress.at(2.5)
    assert progress.left() == "about 18.0 s left"
    progress.at(4)
    assert progress.left() == "", "nothing is left"


@pytest.mark.parametrize("parts", [1, 3])
def test_too_little_is_no_measure(parts):
    progress = Progress(parts, clock=iter([0.0, 5.0]).__next__)
    progress.at(0.001)
    assert progress.left() == ""
