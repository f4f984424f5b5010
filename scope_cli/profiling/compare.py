"""Two result files in, what became worse out: a regression is a figure that grew beyond a threshold."""

from __future__ import annotations

from dataclasses import dataclass

from scope_cli.errors import UsageError
from scope_cli.profiling.result import Result, figures

LESS_IS_BETTER = (
    "prefill_peak_bytes",
    "decode_peak_bytes",
    "kv_allocated_bytes",
    "kv_held_peak_bytes",
    "kv_held_mean_bytes",
    "read_bytes_per_1000",
    "moved_bytes_per_1000",
)
MORE_IS_BETTER = ("prefill_tokens_per_s", "decode_tokens_per_s")


@dataclass(frozen=True)
class Change:
    label: str
    figure: str
    before: float
    after: float
    worse_percent: float  # above 0: worse, whichever direction that is
    regression: bool


def compare(
    before: list[Result], after: list[Result], memory_percent: float, speed_percent: float
) -> list[Change]:
    """Every figure of every label that both have.

    Raises UsageError where they share none, or a label stands for different lengths.
    """
    old = {one.label: one for one in before}
    changes = []
    for new in after:
        if new.label not in old:
            continue
        was = old[new.label]
        if (was.prompt_tokens, was.output_tokens) != (new.prompt_tokens, new.output_tokens):
            raise UsageError(
                f"{new.label}: {was.prompt_tokens:,} + {was.output_tokens:,} tokens before, "
                f"{new.prompt_tokens:,} + {new.output_tokens:,} after",
                "compare runs of the same lengths",
            )
        first, second = figures(was), figures(new)
        for figure in (*LESS_IS_BETTER, *MORE_IS_BETTER):
            worse = _worse(first[figure], second[figure], figure in MORE_IS_BETTER)
            threshold = speed_percent if figure in MORE_IS_BETTER else memory_percent
            changes.append(Change(new.label, figure, first[figure], second[figure], worse, worse > threshold))
    if not changes:
        raise UsageError(
            "the two files have no profile in common: "
            f"{', '.join(old)} before, {', '.join(one.label for one in after)} after",
            "labels are compared: the profile's name, its strategy and its budget",
        )
    return changes


def _worse(before: float, after: float, more_is_better: bool) -> float:
    """By how many percent it became worse; what was 0 and is not is infinitely worse."""
    if more_is_better:
        before, after = after, before
    if before == after:
        return 0.0
    return 100 * (after / before - 1) if before else float("inf")
