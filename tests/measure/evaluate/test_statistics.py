"""Blocks, intervals and paired differences, against numbers that can be known."""

import numpy as np
import pytest

from scope_cli.measure.evaluate.statistics import (
    Blocks,
    Estimate,
    as_text,
    estimate,
    paired_difference,
    quantile,
)


def test_blocks_are_the_means_of_neighbours_and_the_last_may_be_short():
    blocks = Blocks.of([1, 2, 3, 4, 5, 6, 7], block=3)
    assert blocks.means == [2, 5, 7]
    assert blocks.tokens.tolist() == [3, 3, 1]


def test_what_was_saved_gives_the_same_blocks_again():
    blocks = Blocks.of(np.random.default_rng(0).random(100), block=32)
    again = Blocks.from_means(blocks.means, 100, block=32)
    np.testing.assert_allclose(again.sums, blocks.sums)
    assert again.tokens.tolist() == blocks.tokens.tolist()


def test_the_mean_counts_every_token_once_also_over_texts_of_different_lengths():
    first, second = np.arange(200.0), np.arange(70.0)
    both = estimate([Blocks.of(first), Blocks.of(second)])
    assert both.mean == pytest.approx(np.concatenate([first, second]).mean())


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    """Of tokens that depend on their neighbours; taken as independent, they would give too narrow a one."""
    random, block, hits, narrow = np.random.default_rng(1), 32, 0, 0
    for turn in range(200):
        level = np.repeat(random.normal(size=64), block)  # a hard passage is hard for 32 tokens
        values = level + random.normal(size=64 * block)
        found = estimate([Blocks.of(values, block)])
        hits += found.low <= 0 <= found.high
        if turn < 40:  # it draws 32 times as many
            single = estimate([Blocks.of(values, 1)])
            narrow += single.low <= 0 <= single.high
    assert 180 <= hits <= 198
    assert narrow < 20


def test_pairing_finds_a_small_difference_on_texts_that_are_hard_for_both():
    random = np.random.default_rng(2)
    hard = np.repeat(random.normal(size=40) ** 2, 32)
    first = Blocks.of(hard + 0.05 + 0.01 * random.normal(size=len(hard)))
    second = Blocks.of(hard)
    difference = paired_difference([first], [second])
    assert difference.mean == pytest.approx(0.05, abs=0.002)
    assert difference.differs_from_zero
    assert not Estimate(0.05, *_unpaired(first, second)).differs_from_zero


def _unpaired(first, second):
    one, other = estimate([first]), estimate([second], seed=1)
    return one.low - other.high, one.high - other.low


def test_nothing_differs_from_itself():
    blocks = Blocks.of(np.random.default_rng(3).random(500))
    assert paired_difference([blocks], [blocks]).as_list() == [0, 0, 0]


def test_too_few_blocks_give_no_interval():
    assert estimate([Blocks.of(range(96))]).as_list()[1:] == [None, None]
    assert quantile(range(96), 0.95).as_list()[1:] == [None, None]
    assert as_text(estimate([Blocks.of([1.0] * 96)]), 2) == "1.00"


def test_a_quantile_lies_in_its_interval():
    values = np.random.default_rng(4).exponential(size=2048)
    found = quantile(values, 0.95)
    assert found.mean == np.quantile(values, 0.95)
    assert found.low < found.mean < found.high
