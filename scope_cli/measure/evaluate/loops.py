"""Outputs in, how much they repeat themselves out."""

from collections.abc import Sequence
from dataclasses import dataclass

from scope_cli.engine.loops import ExactWatch

NGRAM = 4


@dataclass(frozen=True)
class Repetition:
    """One output; a loop is at least 4 copies of 1 to 128 tokens, 64 tokens in all (engine/loops.py)."""

    tokens: int
    looped: bool
    loop_start: int | None  # index of the longest loop's first token
    loop_period: int | None
    loop_tokens: int  # all its copies together
    unique_ngrams: float  # distinct 4-grams over all 4-grams: 1 where nothing is said twice


def repetition(ids: Sequence[int]) -> Repetition:
    watch = ExactWatch()
    for one in ids:
        watch.feed(one)
    loop = watch.longest()
    return Repetition(
        tokens=len(ids),
        looped=loop is not None,
        loop_start=loop.start if loop else None,
        loop_period=loop.period if loop else None,
        loop_tokens=loop.tokens if loop else 0,
        unique_ngrams=unique_ngrams(ids),
    )


def unique_ngrams(ids: Sequence[int], n: int = NGRAM) -> float:
    """1.0 for an output too short to have an n-gram."""
    ngrams = [tuple(ids[at : at + n]) for at in range(len(ids) - n + 1)]
    return len(set(ngrams)) / len(ngrams) if ngrams else 1.0
