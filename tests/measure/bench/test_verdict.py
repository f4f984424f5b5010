"""The sentence below bench's tables."""

from dataclasses import replace

from scope_cli.measure.bench.report import Figures, verdict

DYNAMIC = Figures(
    "dynamic", 8000, 1, 10.0, 100.0, 90.0, 110.0, 1.0, 1.0, 1.0, 50.0, 1.0, 2**20, 2**20, 100 * 2**20, 100, 0,
    0.5,
)  # fmt: skip
SLIDE = replace(
    DYNAMIC, contender="slide", ratio=2.5, ratio_least=2.25, ratio_most=3.0, held_bytes=10 * 2**20
)


def test_the_fastest_beside_the_baseline_is_named_with_what_it_holds():
    early = replace(SLIDE, position=1000, ratio=9.0)
    slow = replace(SLIDE, contender="full", ratio=0.5)
    assert verdict([early, SLIDE, slow, DYNAMIC], "dynamic") == (
        "at position 8,000 slide writes 2.50 times the tokens/s of dynamic (2.25 to 3.00 in single rounds), "
        "holding 10.00 MiB a text where dynamic holds 100.00 MiB (10.0%)"
    )


def test_rounds_that_contradict_each_other_and_lanes_are_told():
    two = replace(SLIDE, lanes=2, ratio_least=0.8, held_bytes=20 * 2**20)
    said = verdict([two, DYNAMIC], "dynamic")
    assert "slide (2 lanes) writes" in said and "which contradict each other" in said
    assert "holding 10.00 MiB a text" in said


def test_alone_there_is_nothing_to_say():
    assert verdict([DYNAMIC], "dynamic") == verdict([SLIDE], "dynamic") == verdict([], "dynamic") == ""
