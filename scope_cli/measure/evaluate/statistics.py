"""Measurements that depend on their neighbours in, intervals out: the block bootstrap.

Tokens of one text are not independent: a hard sentence is hard for many tokens. So whole blocks of
neighbouring tokens are drawn with replacement, within each text (Carlstein's bootstrap, blocks that do not
overlap).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

BLOCK = 32  # tokens
RESAMPLES = 2000
LEVEL = 0.95
FEWEST_BLOCKS = 4  # of fewer, resampling says nothing

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Blocks:
    """One text's per-token values, summed over blocks of neighbours.

    sums, tokens: [blocks]; only the last block may be shorter than the others
    """

    sums: Floats
    tokens: Floats

    @classmethod
    def of(cls, values: Sequence[float] | Floats, block: int = BLOCK) -> "Blocks":
        array = np.asarray(values, dtype=float)
        starts = np.arange(0, len(array), block)
        return cls(np.add.reduceat(array, starts), np.diff([*starts, len(array)]).astype(float))

    @classmethod
    def from_means(cls, means: Sequence[float], tokens: int, block: int = BLOCK) -> "Blocks":
        """What `means` wrote; `tokens` is the length of the text."""
        sizes = np.diff([*range(0, tokens, block), tokens]).astype(float)
        return cls(np.asarray(means, dtype=float) * sizes, sizes)

    @property
    def means(self) -> list[float]:
        """By position: the mean of each block."""
        return [float(mean) for mean in self.sums / self.tokens]

    def minus(self, other: "Blocks") -> "Blocks":
        """The difference of two measurements of the same text, block by block."""
        assert np.array_equal(self.tokens, other.tokens), "two texts of different lengths"
        return Blocks(self.sums - other.sums, self.tokens)


@dataclass(frozen=True)
class Estimate:
    """A mean with the interval that holds it, by the bootstrap, 95 times of 100."""

    mean: float
    low: float | None  # None: too few blocks to say
    high: float | None

    @property
    def differs_from_zero(self) -> bool:
        return self.low is not None and self.high is not None and (self.low > 0 or self.high < 0)

    def as_list(self) -> list[float | None]:
        return [self.mean, self.low, self.high]


def estimate(texts: Sequence[Blocks], seed: int = 0) -> Estimate:
    """The mean over all tokens of one or several texts; blocks are drawn within each text."""
    sums, tokens = _resampled(texts, seed)
    mean = float(sum(text.sums.sum() for text in texts) / sum(text.tokens.sum() for text in texts))
    return Estimate(mean, *_interval(sums / tokens, texts))


def paired_difference(first: Sequence[Blocks], second: Sequence[Blocks], seed: int = 0) -> Estimate:
    """first - second on the same texts: what both find hard cancels out."""
    return estimate([one.minus(other) for one, other in zip(first, second, strict=True)], seed)


def quantile(values: Sequence[float] | Floats, share: float, seed: int = 0, block: int = BLOCK) -> Estimate:
    """A quantile of one text's per-token values."""
    array = np.asarray(values, dtype=float)
    point = float(np.quantile(array, share))
    whole = len(array) // block
    if whole < FEWEST_BLOCKS:
        return Estimate(point, None, None)
    blocks = array[: whole * block].reshape(whole, block)  # a shorter last block would count as much
    draws = _draws(whole, seed)
    drawn = np.quantile(blocks[draws].reshape(RESAMPLES, -1), share, axis=1)
    return Estimate(point, *_ends(drawn))


def _resampled(texts: Sequence[Blocks], seed: int) -> tuple[Floats, Floats]:
    """Total sum and total tokens of each resample."""
    sums, tokens = np.zeros(RESAMPLES), np.zeros(RESAMPLES)
    for number, text in enumerate(texts):
        draws = _draws(len(text.sums), seed + number)
        sums += text.sums[draws].sum(1)
        tokens += text.tokens[draws].sum(1)
    return sums, tokens


def _draws(blocks: int, seed: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, blocks, (RESAMPLES, blocks))


def _interval(drawn: Floats, texts: Sequence[Blocks]) -> tuple[float | None, float | None]:
    if sum(len(text.sums) for text in texts) < FEWEST_BLOCKS:
        return None, None
    return _ends(drawn)


def _ends(drawn: Floats) -> tuple[float, float]:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return float(low), float(high)


def blocks_of(row: dict[str, Any], what: str) -> Blocks:
    """A saved Fidelity's blocks again."""
    return Blocks.from_means(row["blocks"][what], row["output_tokens"], row["block_tokens"])


def as_text(estimate: Estimate | list[Any], digits: int = 4) -> str:
    """'0.0174 (0.0151 to 0.0199)'"""
    mean, low, high = estimate.as_list() if isinstance(estimate, Estimate) else estimate
    if low is None:
        return f"{mean:.{digits}f}"
    return f"{mean:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"
